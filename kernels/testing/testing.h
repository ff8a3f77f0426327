// What the tests of ops share: inputs, poisoned outputs, distances, gradients.
#ifndef MIMO_KERNELS_TESTING_TESTING_H_
#define MIMO_KERNELS_TESTING_TESTING_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/log/check.h"

namespace mimo {

// n values uniform on [-scale, scale), a function of the seed. Every value is a
// float, so RandomVector<float> and RandomVector<double> hold the same numbers.
template <typename T>
std::vector<T> RandomVector(int64_t n, uint32_t seed, float scale = 1) {
  std::mt19937 bits(seed);
  std::vector<T> x(n);
  for (T& v : x) v = scale * (static_cast<float>(bits() >> 8) * 0x1p-23f - 1);
  return x;
}

// n NaNs: an output that is not written, or is read first, shows.
template <typename T>
std::vector<T> Poisoned(int64_t n) {
  return std::vector<T>(n, std::numeric_limits<T>::quiet_NaN());
}

// |a - b| / |b| in L2, b the reference; |a - b| where b is 0. NaN if any is
// NaN.
template <typename A, typename B>
double RelativeL2(const std::vector<A>& a, const std::vector<B>& b) {
  CHECK_EQ(a.size(), b.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(norm == 0 ? difference : difference / norm);
}

// max |a[i] - b[i]|; NaN if any is NaN.
template <typename A, typename B>
double MaxAbs(const std::vector<A>& a, const std::vector<B>& b) {
  CHECK_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d =
        std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(d <= largest)) largest = d;
    if (std::isnan(d)) break;
  }
  return largest;
}

// sum a[i] * b[i]. A test's loss: random weights times outputs.
double Dot(const std::vector<double>& a, const std::vector<double>& b);

// How far `gradient` is from the central differences of `loss` at x:
//   max_i |(loss(x + h e_i) - loss(x - h e_i)) / 2h - gradient[i]|
// over max(1, max_i |gradient[i]|), h = 1e-5. Truncation is h^2 loss'''/6 and
// rounding 1e-16 |loss| / h, each about 1e-11 for a loss and derivatives of
// order one: a right gradient is below 1e-8. NaN if any is NaN.
double GradCheck(absl::FunctionRef<double(const std::vector<double>&)> loss,
                 const std::vector<double>& x,
                 const std::vector<double>& gradient);

}  // namespace mimo

#endif  // MIMO_KERNELS_TESTING_TESTING_H_
