#include "kernels/testing/testing.h"

#include <algorithm>

namespace mimo {

double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  CHECK_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double GradCheck(absl::FunctionRef<double(const std::vector<double>&)> loss,
                 const std::vector<double>& x,
                 const std::vector<double>& gradient) {
  CHECK_EQ(x.size(), gradient.size());
  constexpr double kStep = 1e-5;
  std::vector<double> numeric(x.size());
  std::vector<double> moved = x;
  double scale = 1;
  for (size_t i = 0; i < x.size(); ++i) {
    moved[i] = x[i] + kStep;
    const double above = loss(moved);
    moved[i] = x[i] - kStep;
    numeric[i] = (above - loss(moved)) / (2 * kStep);
    moved[i] = x[i];
    scale = std::max(scale, std::fabs(gradient[i]));
  }
  return MaxAbs(numeric, gradient) / scale;
}

}  // namespace mimo
