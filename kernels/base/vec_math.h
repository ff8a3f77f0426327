// Elementary functions for inner loops. The float forms are straight-line code
// without calls or branches, always inlined, so a loop marked `#pragma omp
// simd` stays a vector loop; the double forms are the oracle's and call the
// standard library. A target that loops over them has copts -fno-trapping-math
// (else GCC branches). Error of the float forms: Exp 1 ulp, Tanh and Sigmoid 3
// ulp, NormalCdf 4 ulp for x >= -1 and 4e-6 relative down to -12; results under
// 2^-126 are 0. NaN in, NaN out; infinities give the limits.
#ifndef MIMO_KERNELS_BASE_VEC_MATH_H_
#define MIMO_KERNELS_BASE_VEC_MATH_H_

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/base/attributes.h"

namespace mimo {

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2; exp(r) by the
// polynomial of Cephes' expf (S. Moshier), ln 2 in two parts.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline float Exp(float x) {
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  // The low bits of `shifted` are n; they go into the exponent of p.
  const uint32_t scaled =
      std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(shifted) << 23);
  float y = std::bit_cast<float>(scaled);
  y = x < -87.336544f ? 0.0f : y;
  y = x > 88.722839f ? std::numeric_limits<float>::infinity() : y;
  return x == x ? y : x;
}
inline double Exp(double x) { return std::exp(x); }

// 1 / (1 + exp(-x))
ABSL_ATTRIBUTE_ALWAYS_INLINE inline float Sigmoid(float x) {
  return 1.0f / (1.0f + Exp(-x));
}
inline double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// Near 0 the odd polynomial of Cephes' tanhf, else 1 - 2 / (exp(2|x|) + 1).
ABSL_ATTRIBUTE_ALWAYS_INLINE inline float Tanh(float x) {
  const float a = std::fabs(x);
  const float s = x * x;
  float p = -5.70498872745e-3f;
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  p = (p * s) * x + x;
  const float q = std::copysign(1.0f - 2.0f / (Exp(2.0f * a) + 1.0f), x);
  return a < 0.625f ? p : q;
}
inline double Tanh(double x) { return std::tanh(x); }

// Phi(x), the distribution function of a standard normal variable, from
//   Phi(-a) = exp(-a^2/2) P(u) / (1 + a),  u = (a - 3) / (a + 3),  a = |x|,
// the variable of Shepherd & Laframboise 1981 (Math. Comp. 36). P is our least
// squares fit of degree 9 on 0 <= a <= 14; its relative error is 4e-8.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline float NormalCdf(float x) {
  const float b = std::fabs(x);
  const float a = b > 14.0f ? 14.0f : b;
  const float u = (a - 3.0f) / (a + 3.0f);
  float p = -6.8372770e-5f;
  p = p * u - 4.5333698e-4f;
  p = p * u - 2.6033545e-4f;
  p = p * u + 3.0010527e-3f;
  p = p * u + 1.1275968e-3f;
  p = p * u - 2.2731325e-2f;
  p = p * u + 4.5168325e-2f;
  p = p * u - 1.6431902e-2f;
  p = p * u - 9.6526921e-2f;
  p = p * u + 4.8605579e-1f;
  const float tail = Exp(-0.5f * a * a) * p / (1.0f + a);
  return x > 0.0f ? 1.0f - tail : tail;
}
inline double NormalCdf(double x) {
  return 0.5 * std::erfc(-x * 0.70710678118654752440);
}

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_VEC_MATH_H_
