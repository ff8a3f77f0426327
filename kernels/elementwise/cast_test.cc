#include "kernels/elementwise/cast.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

// A device each; the test goes through its dtypes.
class CastTest : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(On, CastTest,
                         testing::Values(Backend{Device::kCpu, DType::kFloat32},
                                         Backend{Device::kCuda,
                                                 DType::kFloat32}),
                         BackendName);

// The nearest value of a significand of `bits` bits, ties to even; in the range
// of normal float32 alone.
double Rounded(double value, int bits) {
  int exponent = 0;
  const double significand = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(significand, bits)),
                    exponent - bits);
}
double Rounded(double value, DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return value;
    case DType::kFloat32:
      return Rounded(value, 24);
    default:
      return Rounded(Rounded(value, 24), 8);
  }
}

std::vector<double> Casted(const Backend& on, const Array& src, DType from,
                           DType to, int64_t size) {
  const Array dst = Array::Poisoned(on, to, size);
  Cast({.src = src.data(),
        .src_dtype = from,
        .dst = dst.data(),
        .dst_dtype = to,
        .size = size},
       StreamOf(on));
  return dst.Values();
}

TEST_P(CastTest, IsTheNearest) {
  std::vector<DType> dtypes = {DType::kFloat32, DType::kBFloat16};
  if (backend().device == Device::kCpu) dtypes.push_back(DType::kFloat64);
  std::mt19937_64 rng(1);
  std::normal_distribution<double> normal;
  for (int64_t size : {0, 1, 13, 4096, 70001}) {
    std::vector<double> values(size);
    for (double& v : values) v = std::ldexp(normal(rng), rng() % 41 - 20);
    for (DType from : dtypes) {
      const Array src(backend(), from, values);
      const std::vector<double> held = src.Values();
      for (DType to : dtypes) {
        const std::vector<double> cast = Casted(backend(), src, from, to, size);
        for (int64_t i = 0; i < size; ++i) {
          ASSERT_EQ(cast[i], Rounded(held[i], to))
              << Name(from) << " to " << Name(to) << ": " << i << " of "
              << size;
        }
      }
    }
  }
}

TEST_P(CastTest, TiesOverflowAndWhatIsNoNumber) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::vector<double> values = {
      1 + 0x1p-8, 1 + 3 * 0x1p-8, -0.0, 0x1p-140, 3.4e38, -kInfinity, NAN};
  const Array src(backend(), DType::kFloat32, values);
  const std::vector<double> cast =
      Casted(backend(), src, DType::kFloat32, DType::kBFloat16, values.size());
  EXPECT_EQ(cast[0], 1);
  EXPECT_EQ(cast[1], 1 + 0x1p-6);
  EXPECT_EQ(cast[2], 0);
  EXPECT_TRUE(std::signbit(cast[2]));
  EXPECT_EQ(cast[3], 0);
  EXPECT_EQ(cast[4], kInfinity);
  EXPECT_EQ(cast[5], -kInfinity);
  EXPECT_TRUE(std::isnan(cast[6]));
}

}  // namespace
}  // namespace mimo::kernels
