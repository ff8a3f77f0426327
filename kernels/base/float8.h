// 8-bit floats on the host, of a product's operands. Storage only; arithmetic
// is done in float.
//   Float8E4M3  4 bits of exponent with bias 7, 3 of mantissa; up to 448, no
//               infinity, one NaN
//   Float8E5M2  5 bits of exponent with bias 15, 2 of mantissa; up to 57344
// Source: Micikevicius et al. 2022, arXiv:2209.05433.
#ifndef MIMO_KERNELS_BASE_FLOAT8_H_
#define MIMO_KERNELS_BASE_FLOAT8_H_

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/base/dtype.h"

namespace mimo {

template <int kBias, int kMantissa>
struct Float8 {
  static constexpr bool kHasInfinity = kBias == 15;
  static constexpr float kLargest = kHasInfinity ? 57344 : 448;
  static constexpr int kShift = 23 - kMantissa;  // from a float's mantissa

  uint8_t bits = 0;

  Float8() = default;
  // To the nearest, ties to even; what is larger than the largest becomes that,
  // infinity too. A NaN stays one.
  explicit Float8(float value) {
    const uint32_t wide = std::bit_cast<uint32_t>(value);
    uint32_t size = wide & 0x7fffffff;
    if (size > 0x7f800000) {
      bits = 0x7f;
      return;
    }
    size = std::min(size, std::bit_cast<uint32_t>(kLargest));
    uint32_t code;
    if (size >> 23 <= 127u - kBias) {
      // Subnormal: a multiple of what is the last place of kOne.
      constexpr float kOne =
          std::bit_cast<float>((127u + 24 - kBias - kMantissa) << 23);
      code = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + kOne) -
             std::bit_cast<uint32_t>(kOne);
    } else {
      code = (size - ((127u - kBias) << 23) + (1u << (kShift - 1)) - 1 +
              ((size >> kShift) & 1)) >>
             kShift;
    }
    bits = static_cast<uint8_t>(code | ((wide >> 24) & 0x80));
  }
  explicit operator float() const {
    const uint32_t sign = uint32_t{bits & 0x80u} << 24;
    const uint32_t size = uint32_t{bits & 0x7fu} << kShift;
    // The exponent's bias by a product, which is right for subnormals too.
    constexpr float kScale = std::bit_cast<float>((2 * 127u - kBias) << 23);
    const uint32_t wide =
        std::bit_cast<uint32_t>(std::bit_cast<float>(size) * kScale);
    const bool special =
        kHasInfinity ? (bits & 0x7c) == 0x7c : (bits & 0x7f) == 0x7f;
    return std::bit_cast<float>(sign | (special ? size | 0x7f800000 : wide));
  }
};
using Float8E4M3 = Float8<7, 3>;
using Float8E5M2 = Float8<15, 2>;

template <>
struct DTypeOf<Float8E4M3> {
  static constexpr DType value = DType::kFloat8E4M3;
};
template <>
struct DTypeOf<Float8E5M2> {
  static constexpr DType value = DType::kFloat8E5M2;
};

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_FLOAT8_H_
