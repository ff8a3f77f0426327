// Text from a model, token by token, with a KV cache.
#ifndef MIMO_MODELS_GENERATE_GENERATE_H_
#define MIMO_MODELS_GENERATE_GENERATE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {

struct GenerateOptions {
  int64_t max_new_tokens = 64;
  std::optional<int32_t> eos_id;  // ends the text; not part of the result
  // 0: greedy, the lowest id among equals. Else softmax(logits / temperature)
  // over the top_k likeliest (0: all), cut to the fewest whose probabilities
  // reach top_p.
  double temperature = 0;
  int64_t top_k = 0;
  double top_p = 1;
  uint64_t seed = 0;
};

// Continues `prompt` (special tokens expanded). Stops early where the model's
// max_sequence_length is reached.
absl::StatusOr<std::vector<int32_t>> Generate(const Context& ctx,
                                              const MimoModel& model,
                                              std::vector<int32_t> prompt,
                                              const ModalityInputs& inputs,
                                              const GenerateOptions& options);

}  // namespace mimo

#endif  // MIMO_MODELS_GENERATE_GENERATE_H_
