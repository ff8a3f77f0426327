#include "cli/build_model.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/base/device.h"
#include "kernels/base/status_macros.h"

namespace mimo {

absl::Status CheckFits(const MimoModel& counted,
                       const OptimizerConfig& optimizer, Device device) {
  double bytes = 0;
  for (const Parameter* p : counted.Parameters()) {
    // A frozen matrix in 8 bits, and once more transposed: on a GPU alone.
    const bool codes = p->frozen && p->quantization != Quantization::kNone;
    if (codes) bytes += 2 * p->data.numel();
    if (!codes || device == Device::kCpu) bytes += p->data.bytes();
    if (p->frozen) continue;
    // A gradient and two moments, and the rest of a 16-bit weight's master.
    bytes += 2 * p->main_grad.bytes() +
             p->main_grad.numel() * SizeOf(optimizer.exp_avg_dtype);
    if (p->data.dtype() == DType::kBFloat16) bytes += p->data.bytes();
  }
  const double memory = DeviceMemory(device).total_bytes;
  if (bytes <= memory) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "model: %.1f GiB of weights, gradients and moments, wanted at most the "
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
