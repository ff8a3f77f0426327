// A run of seconds on the pictures of tests/fixtures.
#ifndef MIMO_TESTS_TESTING_TINY_RUN_H_
#define MIMO_TESTS_TESTING_TINY_RUN_H_

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "tests/testing/run_mimo.h"

namespace mimo {

inline constexpr char kTinyConfig[] = R"(
model:
  type: llava
  language: {num_layers: 1, hidden_size: 32, ffn_hidden_size: 48,
             num_attention_heads: 4, num_query_groups: 2, vocab_size: 400,
             max_sequence_length: 96}
  vision: {num_layers: 2, hidden_size: 24, ffn_hidden_size: 40,
           num_attention_heads: 2, image_size: 16, patch_size: 8,
           feature_layer: -1, position_embedding_std: 0.5}
  special_token_ids: {images: 4}
data: {type: llava_json, path: tests/fixtures/captions.jsonl,
       tokenizer_vocab_size: 300, augment: true}
train: {train_iters: 6, micro_batch_size: 2, global_batch_size: 4, seed: 1234}
optimizer: {lr: 2.0e-3, min_lr: 1.0e-4, lr_warmup_iters: 2, lr_decay_iters: 12,
            weight_decay: 0.1, clip_grad: 1.0}
checkpoint: {save: $0/save}
logging: {metrics: $0/metrics.jsonl, progress: false}
)";

// Writes the config of a run in `folder`, and what `mimo train` wants to hear.
inline std::vector<std::string> TinyTrain(
    const std::string& folder, const std::vector<std::string>& overrides = {}) {
  std::vector<std::string> words = {
      "train", "--config",
      Write(folder + "/config.yaml", absl::Substitute(kTinyConfig, folder))};
  words.insert(words.end(), overrides.begin(), overrides.end());
  return words;
}

}  // namespace mimo

#endif  // MIMO_TESTS_TESTING_TINY_RUN_H_
