// Float16 on the host: IEEE 754 binary16, 5 bits of exponent with bias 15, 10
// of mantissa. Storage only; arithmetic is done in float.
#ifndef MIMO_KERNELS_BASE_FLOAT16_H_
#define MIMO_KERNELS_BASE_FLOAT16_H_

#include <bit>
#include <cstdint>

#include "kernels/base/dtype.h"

namespace mimo {

struct Float16 {
  uint16_t bits = 0;

  Float16() = default;
  // To the nearest, ties to even; a NaN stays one.
  explicit Float16(float value) {
    const uint32_t wide = std::bit_cast<uint32_t>(value);
    const uint32_t size = wide & 0x7fffffff;
    uint32_t half;
    if (size > 0x7f800000) {  // NaN
      half = 0x7e00 | ((size >> 13) & 0x3ff);
    } else if (size >= 0x477ff000) {  // 65520 and more round to infinity
      half = 0x7c00;
    } else if (size < 0x38800000) {
      // Below 2^-14: a multiple of 2^-24, which is the last place of 0.5.
      half = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) -
             std::bit_cast<uint32_t>(0.5f);
    } else {
      half = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
    }
    bits = static_cast<uint16_t>(half | ((wide >> 16) & 0x8000));
  }
  explicit operator float() const {
    const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
    const uint32_t size = uint32_t{bits & 0x7fffu} << 13;
    // The exponent's bias by a product, which is right for subnormals too.
    const uint32_t wide =
        std::bit_cast<uint32_t>(std::bit_cast<float>(size) * 0x1p112f);
    const bool special = (bits & 0x7c00) == 0x7c00;  // infinite or NaN
    return std::bit_cast<float>(sign | (special ? size | 0x7f800000 : wide));
  }
};

template <>
struct DTypeOf<Float16> {
  static constexpr DType value = DType::kFloat16;
};

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_FLOAT16_H_
