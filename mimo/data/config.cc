#include "mimo/data/config.h"

#include "absl/strings/str_cat.h"

namespace mimo {

absl::Status DataConfig::Validate() const {
  const auto check = [](bool right, auto... message) -> absl::Status {
    if (right) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(message...));
  };
  const bool needs_path =
      type == DataType::kLlavaJson || type == DataType::kTensors;
  for (const absl::Status& status :
       {check(!needs_path || !path.empty(), "path: empty, wanted a file"),
        check(validation_fraction >= 0 && validation_fraction < 1,
              "validation_fraction: ", validation_fraction,
              ", wanted 0 to less than 1"),
        check(validation_path.empty() || validation_fraction == 0,
              "validation_fraction: ", validation_fraction,
              ", wanted 0 beside a validation_path"),
        check(tokenizer_vocab_size > 0,
              "tokenizer_vocab_size: ", tokenizer_vocab_size, ", wanted > 0"),
        check(turns >= 0, "turns: ", turns, ", wanted >= 0"),
        check(num_workers >= 0 && num_workers <= 256,
              "num_workers: ", num_workers, ", wanted 0 to 256"),
        check(samples > 0, "samples: ", samples, ", wanted > 0")}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace mimo
