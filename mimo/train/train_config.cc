#include "mimo/train/train_config.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

absl::Status AtLeast(int64_t least, absl::string_view field, int64_t found) {
  if (found >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", found, ", wanted ", least, " or more"));
}

absl::Status NotEmpty(absl::string_view field,
                      const std::optional<std::string>& path) {
  if (!path || !path->empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": an empty path, wanted one, or no such key"));
}

}  // namespace

absl::Status TrainConfig::Validate() const {
  MIMO_RETURN_IF_ERROR(AtLeast(1, "train_iters", train_iters));
  MIMO_RETURN_IF_ERROR(AtLeast(1, "micro_batch_size", micro_batch_size));
  MIMO_RETURN_IF_ERROR(AtLeast(1, "global_batch_size", global_batch_size));
  if (global_batch_size % micro_batch_size != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "global_batch_size: ", global_batch_size,
        ", wanted a multiple of micro_batch_size, ", micro_batch_size));
  }
  MIMO_RETURN_IF_ERROR(AtLeast(0, "seed", seed));
  if (device != "auto" && device != "cpu" && device != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("device: ", device, ", wanted auto, cpu or cuda"));
  }
  if (dtype != "float32" && dtype != "bfloat16" && dtype != "float64") {
    return absl::InvalidArgumentError(absl::StrCat(
        "dtype: ", dtype, ", wanted float32, bfloat16 or float64"));
  }
  MIMO_RETURN_IF_ERROR(NotEmpty("gemm_plans", gemm_plans));
  MIMO_RETURN_IF_ERROR(AtLeast(0, "eval_interval", eval_interval));
  MIMO_RETURN_IF_ERROR(AtLeast(1, "eval_iters", eval_iters));
  if (distributed_timeout_minutes <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "distributed_timeout_minutes: ", distributed_timeout_minutes,
        ", wanted more than 0"));
  }
  MIMO_RETURN_IF_ERROR(AtLeast(0, "encoder_run_ahead", encoder_run_ahead));
  return AtLeast(0, "check_replicas_interval", check_replicas_interval);
}

absl::Status CheckpointConfig::Validate() const {
  MIMO_RETURN_IF_ERROR(NotEmpty("save", save));
  MIMO_RETURN_IF_ERROR(NotEmpty("load", load));
  MIMO_RETURN_IF_ERROR(AtLeast(0, "save_interval", save_interval));
  return AtLeast(0, "keep", keep);
}

absl::Status LoggingConfig::Validate() const {
  MIMO_RETURN_IF_ERROR(AtLeast(1, "log_interval", log_interval));
  MIMO_RETURN_IF_ERROR(NotEmpty("metrics", metrics));
  MIMO_RETURN_IF_ERROR(NotEmpty("tensorboard_dir", tensorboard_dir));
  MIMO_RETURN_IF_ERROR(NotEmpty("profile", profile));
  MIMO_RETURN_IF_ERROR(NotEmpty("trace", trace));
  MIMO_RETURN_IF_ERROR(AtLeast(0, "profile_after", profile_after));
  return AtLeast(1, "profile_iters", profile_iters);
}

}  // namespace mimo
