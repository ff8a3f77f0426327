#include "mimo/data/text/conversation.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

std::string Question(const Turn& turn) {
  return absl::StrCat("USER: ", turn.question, " ASSISTANT:");
}

}  // namespace

int64_t CountImages(std::string_view text) {
  int64_t count = 0;
  for (size_t at = text.find(kImagePlaceholder); at != text.npos;
       at = text.find(kImagePlaceholder, at + kImagePlaceholder.size())) {
    ++count;
  }
  return count;
}

std::string PlaceImages(std::string_view text, int64_t images) {
  std::string out;
  for (int64_t i = CountImages(text); i < images; ++i) {
    absl::StrAppend(&out, kImagePlaceholder, "\n");
  }
  return out.append(text);
}

std::vector<std::string> TokenizerSentences(
    absl::Span<const Conversation> conversations) {
  std::vector<std::string> lines;
  for (const Conversation& conversation : conversations) {
    for (const Turn& turn : conversation.turns) {
      for (const std::string& text : {Question(turn), turn.answer}) {
        for (std::string_view part : absl::StrSplit(text, kImagePlaceholder)) {
          // A line break would end the sentence for sentencepiece.
          std::string line = absl::StrReplaceAll(part, {{"\n", " "}});
          if (line.find_first_not_of(' ') != line.npos) {
            lines.push_back(std::move(line));
          }
        }
      }
    }
  }
  return lines;
}

absl::StatusOr<Sample> ConversationTemplate::Build(absl::Span<const Turn> turns,
                                                   int64_t images,
                                                   bool last_answer) const {
  Sample sample;
  const auto add = [&](absl::Span<const int32_t> ids, bool learned) {
    sample.input_ids.insert(sample.input_ids.end(), ids.begin(), ids.end());
    if (learned) {
      sample.labels.insert(sample.labels.end(), ids.begin(), ids.end());
    } else {
      sample.labels.resize(sample.input_ids.size(), kIgnoreLabel);
    }
  };
  add({tokenizer.bos_id()}, false);
  int64_t placeholders = 0;
  const std::vector<int32_t> image(tokens_per_image, tokenizer.image_id());
  for (size_t t = 0; t < turns.size(); ++t) {
    const std::string question = Question(turns[t]);
    bool first = true;
    for (std::string_view part : absl::StrSplit(question, kImagePlaceholder)) {
      if (!std::exchange(first, false)) {
        add(image, false);
        ++placeholders;
      }
      add(tokenizer.Encode(part), false);
    }
    if (t + 1 == turns.size() && !last_answer) break;
    // An <image> in an answer is text.
    add(tokenizer.Encode(
            absl::StrReplaceAll(turns[t].answer, {{kImagePlaceholder, ""}})),
        true);
    add({tokenizer.eos_id()}, true);
  }
  if (placeholders != images) {
    return absl::InvalidArgumentError(
        absl::StrCat(placeholders, " ", kImagePlaceholder, " in the text for ",
                     images, " images, wanted one each"));
  }
  const int64_t length = sample.input_ids.size();
  if (length > max_sequence_length) {
    return absl::InvalidArgumentError(
        absl::StrCat(length, " tokens, wanted at most max_sequence_length ",
                     max_sequence_length));
  }
  return sample;
}

absl::StatusOr<Sample> ConversationTemplate::Encode(
    absl::Span<const Turn> turns, int64_t images) const {
  return Build(turns, images, /*last_answer=*/true);
}

absl::StatusOr<std::vector<int32_t>> ConversationTemplate::EncodePrompt(
    absl::Span<const Turn> turns, int64_t images) const {
  MIMO_ASSIGN_OR_RETURN(Sample sample,
                        Build(turns, images, /*last_answer=*/false));
  return std::move(sample.input_ids);
}

}  // namespace mimo
