// LlavaMimoProvider: the provider of a LLaVA. LlavaConfig is its table of
// defaults, each of which may be another: Vicuna-7B, CLIP ViT-L/14-336, a
// two-layer MLP, image token 32000.
// Source: Megatron-Bridge, llava_provider.py.
#ifndef MIMO_MODELS_LLAVA_LLAVA_PROVIDER_H_
#define MIMO_MODELS_LLAVA_LLAVA_PROVIDER_H_

#include <optional>

#include "absl/status/statusor.h"
#include "models/llava/llava.h"
#include "models/provider/mimo_model_provider.h"

namespace mimo {

class LlavaMimoProvider : public MimoModelProvider {
 public:
  // `vision_encoder_module`, of any type of the registry and with its
  // parameters, stands as the encoder `clip_encoder` of modality `images`:
  // ModuleSpec("clip_vit", config.vision) is CLIP's. Errors: none of it;
  // LlavaConfig::Validate's.
  static absl::StatusOr<LlavaMimoProvider> Create(
      const LlavaConfig& config, ModuleSpec vision_encoder_module,
      std::optional<MimoParallelismConfig> parallelism = {},
      ModuleRegistry registry = BuiltinModules());

 private:
  using MimoModelProvider::MimoModelProvider;
};

}  // namespace mimo

#endif  // MIMO_MODELS_LLAVA_LLAVA_PROVIDER_H_
