#include "models/llava/llava_provider.h"

#include <utility>

#include "kernels/base/status_macros.h"

namespace mimo {

absl::StatusOr<LlavaMimoProvider> LlavaMimoProvider::Create(
    const LlavaConfig& config, ModuleSpec vision_encoder_module,
    std::optional<MimoParallelismConfig> parallelism, ModuleRegistry registry) {
  if (vision_encoder_module.type.empty()) {
    return absl::InvalidArgumentError("vision_encoder_module must be provided");
  }
  MIMO_RETURN_IF_ERROR(config.Validate());
  return LlavaMimoProvider(
      std::move(registry),
      LlavaModelConfig(config, std::move(vision_encoder_module)),
      std::move(parallelism));
}

}  // namespace mimo
