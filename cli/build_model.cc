#include "cli/build_model.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"

namespace mimo {

absl::StatusOr<std::unique_ptr<MimoModel>> BuildModel(
    const MimoModelConfig& config, const ModuleRegistry& registry,
    BuildContext build) {
  BuildContext meta = build;
  meta.meta = true;
  MIMO_ASSIGN_OR_RETURN(const auto counted,
                        MimoModel::Build(config, registry, meta));
  double bytes = 0;
  for (const Parameter* p : counted->Parameters()) {
    // A trained weight has a gradient and two moments.
    bytes += static_cast<double>(p->data.bytes()) * (p->frozen ? 1 : 4);
  }
  const double memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
                        static_cast<double>(sysconf(_SC_PAGESIZE));
  if (bytes > memory) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "model: %.1f GiB of weights, gradients and moments, wanted at most "
        "this machine's %.1f GiB of memory",
        bytes / (1 << 30), memory / (1 << 30)));
  }
  return MimoModel::Build(config, registry, std::move(build));
}

}  // namespace mimo
