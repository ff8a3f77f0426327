#include "kernels/quantise/quantise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/float8.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;
constexpr DType kCodes[] = {DType::kFloat8E4M3, DType::kFloat8E5M2};

class QuantiseTest : public BackendTest {};
MIMO_ON_BACKENDS(QuantiseTest);
INSTANTIATE_TEST_SUITE_P(OnOracle, QuantiseTest, testing::Values(Oracle()),
                         BackendName);

struct Quantised {
  Values codes;
  float scale, amax;
};

Quantised QuantisedOn(const Backend& on, const Values& x, int64_t rows,
                      int64_t columns, DType code_dtype,
                      bool transpose = false) {
  const Array in(on, x);
  const Array codes = Array::Poisoned(on, code_dtype, rows * columns);
  const Array scale = Array::Poisoned(on, DType::kFloat32, 2);
  Quantise({.x = in.data(),
            .codes = codes.data(),
            .scale = static_cast<float*>(scale.data()),
            .transpose = transpose,
            .rows = rows,
            .columns = columns,
            .dtype = on.dtype,
            .code_dtype = code_dtype},
           StreamOf(on));
  const Values scales = scale.Values();
  return {codes.Values(), static_cast<float>(scales[0]),
          static_cast<float>(scales[1])};
}

// float8_test.cc shows that the host's conversion is to the nearest.
float Rounded(float value, DType code_dtype) {
  return code_dtype == DType::kFloat8E4M3
             ? static_cast<float>(Float8E4M3(value))
             : static_cast<float>(Float8E5M2(value));
}

// Inputs are the same numbers in every dtype: the same codes, to the bit.
TEST_P(QuantiseTest, CodesAreTheFormula) {
  for (auto [rows, columns] : {std::pair<int64_t, int64_t>{0, 16},
                               {1, 16},
                               {37, 48},
                               {16, 16},
                               {48, 80},
                               {64, 64},
                               {80, 208},
                               {272, 1040}}) {
    for (double scale : {0x1p-30, 1.0, 0x1p20}) {
      Values x = RandomValues(rows * columns, rows + 3, scale);
      for (size_t i = 0; i < x.size(); i += 3) x[i] *= 0x1p-9;
      float amax = 0;
      for (double v : x) amax = std::max<float>(amax, std::fabs(v));
      for (DType code_dtype : kCodes) {
        const float largest =
            code_dtype == DType::kFloat8E4M3 ? 448.0f : 57344.0f;
        const float s = amax == 0 ? 1 : largest / amax;
        for (bool transpose : {false, true}) {
          if (transpose && rows % 16 != 0) continue;
          const Quantised q =
              QuantisedOn(backend(), x, rows, columns, code_dtype, transpose);
          ASSERT_EQ(q.amax, amax);
          ASSERT_EQ(q.scale, 1 / s);
          for (int64_t i = 0; i < rows * columns; ++i) {
            const int64_t r = i / columns, c = i % columns;
            ASSERT_EQ(q.codes[transpose ? c * rows + r : i],
                      Rounded(static_cast<float>(x[i]) * s, code_dtype))
                << Name(code_dtype) << " transpose " << transpose << ": " << r
                << ", " << c << " of " << rows << " x " << columns;
          }
        }
      }
    }
  }
}

// Half a unit in the last place, or half the smallest step of codes at a
// largest of 448 (57344); s and the product by it are rounded once each.
TEST_P(QuantiseTest, CodesTimesScaleAreNear) {
  const Values x = RandomValues(32 * 64, 5);
  for (DType code_dtype : kCodes) {
    const bool e4m3 = code_dtype == DType::kFloat8E4M3;
    const Quantised q = QuantisedOn(backend(), x, 32, 64, code_dtype);
    for (size_t i = 0; i < x.size(); ++i) {
      const double error = std::fabs(q.codes[i] * q.scale - x[i]);
      const double relative = (e4m3 ? 0x1p-4 : 0x1p-3) + 0x1p-21;
      const double step = e4m3 ? 0x1p-10 / 448 : 0x1p-17 / 57344;
      ASSERT_LE(error,
                std::max(relative * std::fabs(x[i]), step * q.amax * 1.001));
    }
  }
}

TEST_P(QuantiseTest, ZerosAndTinyNumbersMakeNothingThatIsNotFinite) {
  for (double tiny : {0.0, -0x1p-101, 0x1p-126}) {
    for (DType code_dtype : kCodes) {
      const Quantised q =
          QuantisedOn(backend(), Values(32, tiny), 2, 16, code_dtype);
      EXPECT_EQ(q.scale, 1);
      EXPECT_EQ(q.codes, Values(32, 0)) << tiny;
    }
  }
}

TEST_P(QuantiseTest, TheLargestNumbersAreFinite) {
  const double huge = 0x1.fep127;  // the largest bfloat16
  const Quantised q =
      QuantisedOn(backend(), Values(16, -huge), 1, 16, DType::kFloat8E4M3);
  EXPECT_EQ(q.codes, Values(16, -448));
  EXPECT_NEAR(q.scale * 448 / huge, 1, 1e-6);
}

TEST_P(QuantiseTest, NanAndInfinityShow) {
  for (double bad : {std::numeric_limits<double>::quiet_NaN(),
                     -std::numeric_limits<double>::infinity()}) {
    for (int64_t where : {0, 777, 48 * 64 - 1}) {
      Values x = RandomValues(48 * 64, 1);
      x[where] = bad;
      for (DType code_dtype : kCodes) {
        for (bool transpose : {false, true}) {
          const Quantised q =
              QuantisedOn(backend(), x, 48, 64, code_dtype, transpose);
          EXPECT_TRUE(std::isnan(q.scale)) << bad << " at " << where;
          EXPECT_FALSE(std::isfinite(q.amax));
        }
      }
    }
  }
}

TEST_P(QuantiseTest, IsDeterministic) {
  const Values x = RandomValues(304 * 400, 1);
  SetNumThreads(1);
  const Quantised one =
      QuantisedOn(backend(), x, 304, 400, DType::kFloat8E4M3, true);
  for (int threads : {1, 3}) {
    SetNumThreads(threads);
    EXPECT_EQ(
        QuantisedOn(backend(), x, 304, 400, DType::kFloat8E4M3, true).codes,
        one.codes);
  }
}

TEST(QuantiseDeathTest, SizesThatAProductCannotTake) {
  float x[24] = {}, scale[2];
  uint8_t codes[24];
  EXPECT_DEATH(Quantise({.x = x,
                         .codes = codes,
                         .scale = scale,
                         .rows = 1,
                         .columns = 24,
                         .dtype = DType::kFloat32,
                         .code_dtype = DType::kFloat8E4M3},
                        Stream()),
               "Quantise of 1 x 24, wanted multiples of 16");
}

}  // namespace
}  // namespace mimo::kernels
