#include "mimo/data/text/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <string>
#include <unordered_map>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(const std::vector<std::string>& list) : list_(list) {}
  bool done() const override { return at_ == list_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return list_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& list_;
  size_t at_ = 0;
};

}  // namespace

absl::StatusOr<Tokenizer> Tokenizer::Load(const std::string& path) {
  MIMO_ASSIGN_OR_RETURN(std::string bytes, ReadFile(path));
  return Parse(std::move(bytes), path);
}

absl::StatusOr<Tokenizer> Tokenizer::Parse(std::string bytes,
                                           const std::string& name) {
  const auto bad = [&](std::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": not a sentencepiece model: ", why));
  };
  if (bytes.empty()) return bad("an empty file");
  auto model = std::make_shared<sentencepiece::SentencePieceProcessor>();
  try {
    const auto status = model->LoadFromSerializedProto(bytes);
    if (!status.ok()) return bad("damaged or cut short");
  } catch (const std::exception& e) {
    return bad(e.what());
  }
  if (model->GetPieceSize() == 0) return bad("no pieces");
  Tokenizer t;
  t.bos_ = model->bos_id();
  t.eos_ = model->eos_id();
  if (t.bos_ < 0 || t.eos_ < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": no begin or end of sentence token, wanted both"));
  }
  t.pad_ = model->pad_id() >= 0 ? model->pad_id() : t.eos_;
  const int image = model->PieceToId(kImagePlaceholder);
  t.image_ = image == model->unk_id() ? -1 : image;
  t.model_ = std::move(model);
  t.bytes_ = std::make_shared<const std::string>(std::move(bytes));
  return t;
}

absl::StatusOr<std::string> Tokenizer::Train(
    const std::vector<std::string>& sentences, int64_t vocab_size) {
  if (sentences.empty()) {
    return absl::InvalidArgumentError("tokenizer: no sentences to train on");
  }
  const std::unordered_map<std::string, std::string> options = {
      {"model_type", "bpe"},
      {"vocab_size", absl::StrCat(vocab_size)},
      {"hard_vocab_limit", "false"},
      {"character_coverage", "1.0"},
      {"byte_fallback", "true"},
      {"pad_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"unk_id", "3"},
      {"user_defined_symbols", std::string(kImagePlaceholder)},
      // "Italy." may be one piece: short sequences are fast sequences.
      {"split_by_unicode_script", "false"},
      // One thread: sums of expected counts in one order.
      {"num_threads", "1"},
      // Errors come back as a status.
      {"minloglevel", "5"},
  };
  std::string bytes;
  try {
    Sentences iterator(sentences);
    const auto status =
        sentencepiece::SentencePieceTrainer::Train(options, &iterator, &bytes);
    if (!status.ok()) {
      std::string why = status.error_message();
      for (char& c : why) c = c == '\n' ? ' ' : c;
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer of ", vocab_size, " tokens: ", why));
    }
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer of ", vocab_size, " tokens: ", e.what()));
  }
  return bytes;
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  std::vector<int> ids;
  const auto status = model_->Encode({text.data(), text.size()}, &ids);
  CHECK(status.ok()) << status.ToString();
  return {ids.begin(), ids.end()};
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids) const {
  std::vector<int> pieces;
  for (const int32_t id : ids) {
    if (id >= 0 && id < size() && id != image_ && !model_->IsUnknown(id)) {
      pieces.push_back(id);
    }
  }
  std::string text;
  const auto status = model_->Decode(pieces, &text);
  CHECK(status.ok()) << status.ToString();
  return text;
}

int64_t Tokenizer::size() const { return model_->GetPieceSize(); }

absl::Status Tokenizer::CheckVocab(int64_t vocab_size) const {
  if (size() > vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("vocab_size: ", vocab_size, ", wanted at least the ",
                     size(), " tokens of the tokenizer"));
  }
  if (image_ >= vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "vocab_size: ", vocab_size, ", too small for the special token ",
        kImagePlaceholder, " with id ", image_));
  }
  return absl::OkStatus();
}

}  // namespace mimo
