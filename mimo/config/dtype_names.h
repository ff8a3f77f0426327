// The dtypes that a config may name.
#ifndef MIMO_MIMO_CONFIG_DTYPE_NAMES_H_
#define MIMO_MIMO_CONFIG_DTYPE_NAMES_H_

#include <array>
#include <utility>

#include "absl/strings/string_view.h"
#include "kernels/base/dtype.h"
#include "mimo/config/fields.h"

namespace mimo {

template <>
struct EnumNames<DType> {
  static constexpr std::array<std::pair<DType, absl::string_view>, 2> kNames = {
      {{DType::kFloat32, "float32"}, {DType::kBFloat16, "bfloat16"}}};
};

}  // namespace mimo

#endif  // MIMO_MIMO_CONFIG_DTYPE_NAMES_H_
