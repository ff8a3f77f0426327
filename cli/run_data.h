// A run's data as its model needs it: tokenizer, conversation format, picture
// size.
#ifndef MIMO_CLI_RUN_DATA_H_
#define MIMO_CLI_RUN_DATA_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "mimo/data/batch.h"
#include "mimo/data/config.h"
#include "mimo/data/corpus.h"
#include "mimo/train/batch_source.h"
#include "models/spec/module_spec.h"

namespace mimo {

struct RunData {
  DataConfig config;
  Corpus corpus;
  std::optional<ConversationTemplate> format;
  int64_t image_size = 0;
};

// As the model's encoders of images, all of them, look at one.
struct Pictures {
  int64_t size = 0;    // height and width
  int64_t tokens = 0;  // of one
};
// Errors: an encoder that mimo does not know, one of another size.
absl::StatusOr<Pictures> PicturesOf(const MimoModelConfig& model);

// `tokenizer` with the model's image token. Errors: the model's vocabulary is
// too small for it, or its image token is another.
absl::StatusOr<ConversationTemplate> MakeFormat(Tokenizer tokenizer,
                                                const MimoModelConfig& model);

// Of type captions or llava_json. The tokenizer: `tokenizer_file` if not empty
// (a checkpoint's), else the config's, else trained on the corpus.
absl::StatusOr<RunData> OpenData(const DataConfig& config,
                                 const MimoModelConfig& model,
                                 const std::string& tokenizer_file);

// What a run trains on, and what it validates on, in conversations and in the
// questions of these in order (null: nothing): a rank's share.
struct Sources {
  std::unique_ptr<BatchSource> train, validation, questions;
};
absl::StatusOr<Sources> MakeSources(const RunData& data,
                                    const MimoModelConfig& model, uint64_t seed,
                                    const DataShare& share);

}  // namespace mimo

#endif  // MIMO_CLI_RUN_DATA_H_
