// Quantization: in what the linear layers of a module multiply.
#ifndef MIMO_MIMO_NN_QUANTIZATION_H_
#define MIMO_MIMO_NN_QUANTIZATION_H_

#include <array>
#include <utility>

#include "absl/strings/string_view.h"
#include "mimo/config/fields.h"

namespace mimo {

// none  in the run's dtype
// fp8   in 8-bit floats, of scales that each tensor's own largest size gives
//       (kernels/quantise): outputs of e4m3 inputs and weights, gradients of
//       inputs of e5m2 gradients and e4m3 weights. Weights, their gradients and
//       everything between layers stay in the run's dtype (docs/adr/0013).
enum class Quantization { kNone, kFp8 };
template <>
struct EnumNames<Quantization> {
  static constexpr std::array<std::pair<Quantization, absl::string_view>, 2>
      kNames = {{{Quantization::kNone, "none"}, {Quantization::kFp8, "fp8"}}};
};

}  // namespace mimo

#endif  // MIMO_MIMO_NN_QUANTIZATION_H_
