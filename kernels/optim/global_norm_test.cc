#include "kernels/optim/global_norm.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

struct Result {
  double norm, scale;
};

template <typename T>
Result Norm(const std::vector<std::vector<T>>& xs, double max_norm) {
  std::vector<NormTensor> tensors;
  for (const std::vector<T>& x : xs)
    tensors.push_back({x.data(), static_cast<int64_t>(x.size())});
  Result result{std::nan(""), std::nan("")};
  GlobalNorm({.tensors = tensors,
              .max_norm = max_norm,
              .norm = &result.norm,
              .scale = &result.scale,
              .dtype = DTypeOf<T>::value},
             Stream());
  return result;
}

// The same numbers in both dtypes, summed in double: the same norm.
TEST(GlobalNorm, IsTheFormula) {
  std::vector<std::vector<float>> xs32;
  std::vector<std::vector<double>> xs64;
  long double squares = 0;
  for (int64_t size : {1, 0, 17, 40009, 16384}) {
    xs32.push_back(RandomVector<float>(size, size + 1));
    xs64.push_back(RandomVector<double>(size, size + 1));
    for (double v : xs64.back()) squares += v * v;
  }
  const double norm = static_cast<double>(std::sqrt(squares));
  for (double max_norm : {0.0, 1.0, norm / 2, 2 * norm}) {
    const double scale =
        max_norm == 0 || max_norm > norm ? 1 : max_norm / (norm + 1e-6);
    for (const Result& result : {Norm(xs32, max_norm), Norm(xs64, max_norm)}) {
      EXPECT_NEAR(result.norm, norm, 1e-13 * norm);
      EXPECT_NEAR(result.scale, scale, 1e-13);
    }
  }
}

TEST(GlobalNorm, NothingHasNormZero) {
  EXPECT_EQ(Norm<float>({}, 1).norm, 0);
  EXPECT_EQ(Norm<float>({}, 1).scale, 1);
}

TEST(GlobalNorm, LargeFloatsDoNotOverflow) {
  EXPECT_NEAR(Norm<float>({{3e38f}, {3e38f}}, 0).norm / 4.2426406871e38, 1,
              1e-6);
}

TEST(GlobalNorm, NanAndInfinityShow) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(),
                    -std::numeric_limits<float>::infinity()}) {
    std::vector<float> x(40009, 1);
    x[20011] = bad;
    EXPECT_FALSE(std::isfinite(Norm<float>({x}, 1).norm));
  }
}

TEST(GlobalNorm, ThreadsDoNotChangeABit) {
  const std::vector<std::vector<float>> xs = {RandomVector<float>(100003, 1),
                                              RandomVector<float>(40009, 2)};
  SetNumThreads(1);
  const Result one = Norm(xs, 1);
  SetNumThreads(3);
  EXPECT_EQ(Norm(xs, 1).norm, one.norm);
  EXPECT_EQ(Norm(xs, 1).scale, one.scale);
}

}  // namespace
}  // namespace mimo::kernels
