// BFloat16 on the host: the upper half of a float32. Storage only; arithmetic
// is done in float.
#ifndef MIMO_KERNELS_BASE_BFLOAT16_H_
#define MIMO_KERNELS_BASE_BFLOAT16_H_

#include <bit>
#include <cstdint>

#include "kernels/base/dtype.h"

namespace mimo {

struct BFloat16 {
  uint16_t bits = 0;

  BFloat16() = default;
  // To the nearest, ties to even; a NaN stays one.
  explicit BFloat16(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    bits = value == value ? (word + 0x7fff + ((word >> 16) & 1)) >> 16
                          : (word >> 16) | 0x40;
  }
  explicit operator float() const {
    return std::bit_cast<float>(uint32_t{bits} << 16);
  }
};

template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::kBFloat16;
};

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_BFLOAT16_H_
