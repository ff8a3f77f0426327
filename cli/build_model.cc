#include "cli/build_model.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/base/device.h"
#include "kernels/base/status_macros.h"
#include "models/plan/module_memory.h"

namespace mimo {

absl::Status CheckFits(const MimoModel& counted,
                       const OptimizerConfig& optimizer, Device device) {
  const double bytes =
      StateMemory(counted, optimizer.exp_avg_dtype, device).Total();
  const double memory = DeviceMemory(device).total_bytes;
  if (bytes <= memory) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "%.1f GiB of weights, gradients and moments, wanted at most the "
      "%.1f GiB of memory of this %s",
      bytes / (1 << 30), memory / (1 << 30),
      device == Device::kCpu ? "machine" : "GPU"));
}

absl::StatusOr<std::unique_ptr<MimoModel>> BuildModel(
    const MimoModelConfig& config, const ModuleRegistry& registry,
    BuildContext build, const OptimizerConfig& optimizer) {
  BuildContext meta = build;
  meta.meta = true;
  MIMO_ASSIGN_OR_RETURN(const auto counted,
                        MimoModel::Build(config, registry, meta));
  MIMO_RETURN_IF_ERROR(
      CheckFits(*counted, optimizer, build.allocator->stream().device));
  return MimoModel::Build(config, registry, std::move(build));
}

}  // namespace mimo
