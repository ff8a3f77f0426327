// Checks for the Validate() of config structs.
#ifndef MIMO_MIMO_CONFIG_CHECK_H_
#define MIMO_MIMO_CONFIG_CHECK_H_

#include <cstdint>
#include <initializer_list>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace mimo {

using NamedSizes = std::initializer_list<std::pair<absl::string_view, int64_t>>;

// Each value is in [min, 2^21]: the bytes of ten thousand layers of matrices of
// two such sizes are still an int64_t.
inline absl::Status CheckSizes(int64_t min, NamedSizes sizes) {
  constexpr int64_t kMax = int64_t{1} << 21;
  for (const auto& [name, value] : sizes) {
    if (value < min || value > kMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": ", value, ", wanted ", min, " to ", kMax));
    }
  }
  return absl::OkStatus();
}

// Each value is at least `tp`: every tensor-parallel rank has a part.
inline absl::Status CheckParts(int tp, NamedSizes sizes) {
  for (const auto& [name, value] : sizes) {
    if (value < tp) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": ", value,
                       ", wanted at least tensor_model_parallel_size ", tp));
    }
  }
  return absl::OkStatus();
}

// `right`, or "<name>: <value>, wanted <wanted>".
inline absl::Status CheckValue(bool right, absl::string_view name, double value,
                               absl::string_view wanted) {
  if (right) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": ", value, ", wanted ", wanted));
}

}  // namespace mimo

#endif  // MIMO_MIMO_CONFIG_CHECK_H_
