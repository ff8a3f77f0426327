// Samples out of conversations: turns drawn, pictures decoded and looked at.
#ifndef MIMO_MIMO_DATA_CONVERSATION_DATASET_H_
#define MIMO_MIMO_DATA_CONVERSATION_DATASET_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "mimo/data/conversation_list.h"
#include "mimo/data/dataset.h"
#include "mimo/data/image/augment.h"
#include "mimo/data/image/preprocess.h"
#include "mimo/data/text/conversation.h"

namespace mimo {

// How a picture becomes a vision tower's input.
struct ViewOptions {
  int64_t image_size;
  Fit fit = Fit::kCrop;
  std::optional<AugmentOptions> augment = {};  // none: ClipPreprocess
};

// [3, image_size, image_size]; reads the file when it is not decoded yet. What
// is random comes from `random`.
absl::StatusOr<ModalityItem> View(const Picture& picture,
                                  const ViewOptions& options,
                                  PhiloxSequence random);

struct ConversationDatasetOptions {
  ViewOptions view;
  // This many turns of each conversation, drawn anew for each visit, in random
  // order, with the pictures before the first; 0: all as they are.
  int64_t turns = 0;
  uint64_t seed = 0;
  std::string modality = "images";
  bool cache = false;  // keep decoded pictures (shrunk when augmented)
};

class ConversationDataset : public Dataset {
 public:
  // Reads the pictures if they are to be cached.
  static absl::StatusOr<std::shared_ptr<const ConversationDataset>> Create(
      ConversationList conversations, const ConversationTemplate& format,
      const ConversationDatasetOptions& options);

  int64_t size() const override { return conversations_.size(); }
  absl::StatusOr<Sample> Text(int64_t index, int64_t visit) const override;
  absl::StatusOr<std::vector<ModalityItem>> Items(
      int64_t index, int64_t visit, const std::string& modality) const override;
  int64_t ItemTokens(int64_t index, int64_t visit,
                     const std::string& modality) const override;

 private:
  ConversationDataset(ConversationList conversations,
                      const ConversationTemplate& format,
                      const ConversationDatasetOptions& options)
      : conversations_(std::move(conversations)),
        format_(format),
        options_(options) {}

  const ConversationList conversations_;
  const ConversationTemplate format_;
  const ConversationDatasetOptions options_;
};

// Random tokens and one random picture a sample, for tests and measurements:
// tokens_per_image image tokens, then text, all of it labelled.
struct MockOptions {
  int64_t samples, sequence_length, vocab_size, tokens_per_image, image_size;
  int32_t image_id;
  uint64_t seed;
  std::string modality = "images";
};

class MockDataset : public Dataset {
 public:
  explicit MockDataset(const MockOptions& options) : options_(options) {}
  int64_t size() const override { return options_.samples; }
  absl::StatusOr<Sample> Text(int64_t index, int64_t visit) const override;
  absl::StatusOr<std::vector<ModalityItem>> Items(
      int64_t index, int64_t visit, const std::string& modality) const override;
  int64_t ItemTokens(int64_t index, int64_t visit,
                     const std::string& modality) const override;

 private:
  const MockOptions options_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_CONVERSATION_DATASET_H_
