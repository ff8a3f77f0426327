#include "mimo/data/corpus.h"

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/fashion_mnist.h"
#include "mimo/data/flags/prepare.h"
#include "mimo/data/llava_json.h"

namespace mimo {
namespace {

// A tokenizer is trained on fewer conversations of a split: of more, one in so
// many, for every rank does it.
constexpr size_t kMostToLearnFrom = 100000;

struct Question {
  int64_t conversation;
  Turn alone;
  int64_t images;
};

class Questions : public Dataset {
 public:
  Questions(std::shared_ptr<const Dataset> conversations,
            const ConversationTemplate& format, std::vector<Question> questions)
      : conversations_(std::move(conversations)),
        format_(format),
        questions_(std::move(questions)) {}

  int64_t size() const override { return questions_.size(); }
  absl::StatusOr<Sample> Text(int64_t index, int64_t /*visit*/) const override {
    return format_.Encode({questions_[index].alone}, questions_[index].images);
  }
  absl::StatusOr<std::vector<ModalityItem>> Items(
      int64_t index, int64_t visit,
      const std::string& modality) const override {
    return conversations_->Items(questions_[index].conversation, visit,
                                 modality);
  }
  int64_t ItemTokens(int64_t index, int64_t visit,
                     const std::string& modality) const override {
    return conversations_->ItemTokens(questions_[index].conversation, visit,
                                      modality);
  }

 private:
  const std::shared_ptr<const Dataset> conversations_;
  const ConversationTemplate format_;
  const std::vector<Question> questions_;
};

absl::Status AddFlags(const DataConfig& config, Corpus& corpus) {
  MIMO_ASSIGN_OR_RETURN(const FlagSources sources, FindFlagSources());
  const std::string folder = absl::StrCat(config.data_dir, "/flags");
  MIMO_RETURN_IF_ERROR(PrepareFlags(folder, sources));
  for (const std::string_view name : kFlagSplits) {
    Split split = {.name = std::string(name)};
    MIMO_ASSIGN_OR_RETURN(
        split.conversations,
        ReadLlavaJson(absl::StrCat(folder, "/", name, ".json")));
    if (name == "train") split.augment = kTrainAugment;
    if (name == "kgeography") split.augment = kShiftAugment;
    (name == "train" ? corpus.train : corpus.validation)
        .push_back(std::move(split));
  }
  return absl::OkStatus();
}

absl::Status AddFashionMnist(Corpus& corpus) {
  // Grey garments on black.
  const AugmentOptions augment = {.min_scale = 0.9,
                                  .max_scale = 1.1,
                                  .rotation = 4,
                                  .shift = 0.06,
                                  .background = {0, 0, 0}};
  Split train = {.name = "fashion_mnist_train", .augment = augment};
  Split test = {.name = "fashion_mnist_test"};
  MIMO_ASSIGN_OR_RETURN(train.conversations, ReadFashionMnist(true));
  MIMO_ASSIGN_OR_RETURN(test.conversations, ReadFashionMnist(false));
  corpus.train.push_back(std::move(train));
  corpus.validation.push_back(std::move(test));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Corpus> LoadCorpus(const DataConfig& config) {
  Corpus corpus;
  if (config.type == DataType::kCaptions) {
    for (std::string_view name : absl::StrSplit(config.name, '+')) {
      if (name == "flags") {
        MIMO_RETURN_IF_ERROR(AddFlags(config, corpus));
      } else if (name == "fashion_mnist") {
        MIMO_RETURN_IF_ERROR(AddFashionMnist(corpus));
      } else {
        return absl::InvalidArgumentError(
            absl::StrCat("data.name: ", config.name,
                         ", wanted flags, fashion_mnist or both with a +"));
      }
    }
    return corpus;
  }
  CHECK(config.type == DataType::kLlavaJson) << "LoadCorpus";
  Split train = {.name = "train", .augment = kTrainAugment};
  Split validation = {.name = "validation"};
  MIMO_ASSIGN_OR_RETURN(const ConversationList all,
                        ReadLlavaJson(config.path, config.image_root));
  std::tie(train.conversations, validation.conversations) =
      SplitByHash(all, config.validation_fraction);
  if (!config.validation_path.empty()) {
    MIMO_ASSIGN_OR_RETURN(
        validation.conversations,
        ReadLlavaJson(config.validation_path, config.image_root));
  }
  corpus.train.push_back(std::move(train));
  if (!validation.conversations.empty()) {
    corpus.validation.push_back(std::move(validation));
  }
  return corpus;
}

absl::StatusOr<Tokenizer> MakeTokenizer(const DataConfig& config,
                                        const Corpus& corpus) {
  if (!config.tokenizer.empty()) return Tokenizer::Load(config.tokenizer);
  // A line that comes thousands of times says no more than one of a thousand.
  std::vector<std::string> lines;
  absl::flat_hash_map<std::string, int> count;
  for (const Split& split : corpus.train) {
    const size_t step = 1 + split.conversations.size() / kMostToLearnFrom;
    for (size_t i = 0; i < split.conversations.size(); i += step) {
      for (std::string& line : TokenizerSentences({split.conversations[i]})) {
        if (++count[line] <= 1000) lines.push_back(std::move(line));
      }
    }
  }
  auto bytes = Tokenizer::Train(lines, config.tokenizer_vocab_size);
  if (!bytes.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data.tokenizer_vocab_size: ", config.tokenizer_vocab_size,
        ", wanted enough for 256 bytes and every letter of the data"));
  }
  return Tokenizer::Parse(*std::move(bytes), "tokenizer");
}

absl::StatusOr<std::shared_ptr<const Dataset>> TrainingDataset(
    const DataConfig& config, const Corpus& corpus,
    const ConversationTemplate& format, int64_t image_size, uint64_t seed,
    bool pictures) {
  std::vector<std::shared_ptr<const Dataset>> parts;
  for (const Split& split : corpus.train) {
    if (split.conversations.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("data: 0 conversations in ", split.name));
    }
    ConversationDatasetOptions options = {
        .view = {.image_size = image_size, .fit = config.fit},
        .turns = config.turns,
        .seed = seed,
        .cache = pictures &&
                 (config.cache_images || config.type == DataType::kCaptions)};
    if (config.augment) options.view.augment = split.augment;
    MIMO_ASSIGN_OR_RETURN(
        parts.emplace_back(),
        ConversationDataset::Create(split.conversations, format, options));
  }
  if (parts.size() == 1) return parts[0];
  return std::make_shared<const MixedDataset>(std::move(parts));
}

absl::StatusOr<std::shared_ptr<const Dataset>> ValidationDataset(
    const DataConfig& config, const Split& split,
    const ConversationTemplate& format, int64_t image_size, uint64_t seed) {
  return ConversationDataset::Create(split.conversations, format,
                                     {.view = {.image_size = image_size,
                                               .fit = config.fit,
                                               .augment = split.augment},
                                      .seed = seed});
}

absl::StatusOr<std::shared_ptr<const Dataset>> QuestionDataset(
    const DataConfig& config, const Split& split,
    const ConversationTemplate& format, int64_t image_size, uint64_t seed) {
  MIMO_ASSIGN_OR_RETURN(
      auto conversations,
      ValidationDataset(config, split, format, image_size, seed));
  std::vector<Question> questions;
  for (size_t c = 0; c < split.conversations.size(); ++c) {
    const Conversation conversation = split.conversations[c];
    const int64_t images = conversation.pictures.size();
    for (Turn turn : conversation.turns) {
      turn.question = PlaceImages(turn.question, images);
      questions.push_back({static_cast<int64_t>(c), std::move(turn), images});
    }
  }
  return std::make_shared<const Questions>(std::move(conversations), format,
                                           std::move(questions));
}

}  // namespace mimo
