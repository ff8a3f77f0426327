// Quantise: a matrix in 8-bit floats with one scale, as an operand of a product
// on tensor cores (kernels/gemm).
//   amax  = max |x|
//   s     = the largest 8-bit float / amax; 1 if amax < 2^-100
//   codes = x s, to the nearest 8-bit float
//   scale = 1 / s, so x is about scale * codes
// What is not finite in x makes scale a NaN, and with it all of a product.
// Current scaling: amax is of this very x, not of steps before.
// All in float32, to which float64 is rounded first: every device and dtype
// gives the same codes of the same numbers.
// Source: Micikevicius et al. 2022, arXiv:2209.05433, section 3.
// Bytes (the floor): x twice, and one an element.
#ifndef MIMO_KERNELS_QUANTISE_QUANTISE_H_
#define MIMO_KERNELS_QUANTISE_QUANTISE_H_

#include <cstdint>
#include <limits>

#include "absl/log/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct QuantiseArgs {
  const void* x;           // [rows, columns] dtype
  void* codes;             // [rows, columns], or [columns, rows], code_dtype
  float* scale;            // [2] scale, amax
  bool transpose = false;  // the second shape
  // Columns, and rows to transpose, are multiples of 16, as products want them.
  int64_t rows, columns;
  DType dtype;
  DType code_dtype;  // kFloat8E4M3 or kFloat8E5M2
};
MIMO_OP(Quantise, QuantiseArgs);

inline void Check(const QuantiseArgs& args) {
  CHECK(IsFloat8(args.code_dtype)) << "Quantise to " << Name(args.code_dtype);
  CHECK(args.columns % 16 == 0 && (!args.transpose || args.rows % 16 == 0))
      << "Quantise of " << args.rows << " x " << args.columns
      << ", wanted multiples of 16";
}

// s of the formula, for both devices.
constexpr float QuantisationFactor(float amax, float largest) {
  if (!(amax <= std::numeric_limits<float>::max()))
    return std::numeric_limits<float>::quiet_NaN();
  return amax < 0x1p-100f ? 1 : largest / amax;
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_QUANTISE_QUANTISE_H_
