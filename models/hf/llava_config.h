// The config.json of a Hugging Face LLaVA checkpoint and our LlavaConfig.
// Source: transformers' LlavaConfig, LlamaConfig and CLIPVisionConfig, whose
// defaults stand for keys that are left out.
#ifndef MIMO_MODELS_HF_LLAVA_CONFIG_H_
#define MIMO_MODELS_HF_LLAVA_CONFIG_H_

#include <string>

#include "absl/status/statusor.h"
#include "kernels/base/dtype.h"
#include "models/llava/config.h"

namespace mimo {

// Reads folder/config.json. An error names what is not supported: another model
// type, scaled rotary embeddings, biases in Llama, a list of feature layers.
absl::StatusOr<LlavaConfig> ReadHfLlavaConfig(const std::string& folder);

// config.json of `config`, with weights in `dtype`. An error names a size that
// Hugging Face's LLaVA cannot have.
absl::StatusOr<std::string> HfLlavaConfigJson(const LlavaConfig& config,
                                              DType dtype);

}  // namespace mimo

#endif  // MIMO_MODELS_HF_LLAVA_CONFIG_H_
