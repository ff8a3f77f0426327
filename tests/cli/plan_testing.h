// Plans of a tiny LLaVA with any section of parallelism.
#ifndef MIMO_TESTS_CLI_PLAN_TESTING_H_
#define MIMO_TESTS_CLI_PLAN_TESTING_H_

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "tests/cli/mistakes.h"

namespace mimo {

using nlohmann::json;

// A tiny LLaVA with `parallelism` and batch sizes.
inline std::string Config(const std::string& parallelism,
                          int micro_batch_size = 1, int global_batch_size = 1) {
  return absl::Substitute(R"(
model:
  type: llava
  language: {num_layers: 4, hidden_size: 32, ffn_hidden_size: 48,
             num_attention_heads: 4, vocab_size: 400, max_sequence_length: 96}
  vision: {num_layers: 2, hidden_size: 24, ffn_hidden_size: 40,
           num_attention_heads: 2, image_size: 16, patch_size: 8}
  special_token_ids: {images: 4}
parallelism: {$0}
train: {micro_batch_size: $1, global_batch_size: $2}
)",
                          parallelism, micro_batch_size, global_batch_size);
}

class PlanTest : public Mistakes {
 protected:
  Words PlanWords(const std::string& config, int world) {
    Write(In("f.yaml"), config);
    return {"plan", "--config", In("f.yaml"), "--world", absl::StrCat(world)};
  }
  json Plan(const std::string& config, int world) {
    Words words = PlanWords(config, world);
    words.push_back("--json");
    const Ran ran = RunMimo(words);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return json::parse(ran.out);
  }
};

}  // namespace mimo

#endif  // MIMO_TESTS_CLI_PLAN_TESTING_H_
