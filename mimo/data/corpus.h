// What a `data:` section names: its conversations in splits, its tokenizer, its
// data set.
#ifndef MIMO_MIMO_DATA_CORPUS_H_
#define MIMO_MIMO_DATA_CORPUS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "mimo/data/config.h"
#include "mimo/data/conversation_dataset.h"
#include "mimo/data/conversation_list.h"
#include "mimo/data/dataset.h"
#include "mimo/data/image/augment.h"
#include "mimo/data/text/conversation.h"
#include "mimo/data/text/tokenizer.h"

namespace mimo {

struct Split {
  std::string name;  // "train", "heldout_style", ...
  ConversationList conversations = {};
  // Random views: of training if the config asks for them, of evaluation
  // always.
  std::optional<AugmentOptions> augment = {};
};

// Several training splits are mixed one to one.
struct Corpus {
  std::vector<Split> train, validation;
};

// Of type captions or llava_json; prepares ready-made sets under data_dir.
absl::StatusOr<Corpus> LoadCorpus(const DataConfig& config);

// The config's, or one trained on the corpus' training splits.
absl::StatusOr<Tokenizer> MakeTokenizer(const DataConfig& config,
                                        const Corpus& corpus);

// All training splits as one data set. Without `pictures`, whose items are then
// never asked for, none is decoded ahead.
absl::StatusOr<std::shared_ptr<const Dataset>> TrainingDataset(
    const DataConfig& config, const Corpus& corpus,
    const ConversationTemplate& format, int64_t image_size, uint64_t seed,
    bool pictures = true);

// One validation split, each conversation whole; seed draws its views.
absl::StatusOr<std::shared_ptr<const Dataset>> ValidationDataset(
    const DataConfig& config, const Split& split,
    const ConversationTemplate& format, int64_t image_size, uint64_t seed);

// Each question of a validation split alone, with the pictures of its
// conversation as ValidationDataset shows them: conversation by conversation,
// turn by turn.
absl::StatusOr<std::shared_ptr<const Dataset>> QuestionDataset(
    const DataConfig& config, const Split& split,
    const ConversationTemplate& format, int64_t image_size, uint64_t seed);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_CORPUS_H_
