#include "kernels/rotary/rotary.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

constexpr double kBase = 10000;
constexpr int64_t kMaxPosition = 2048;

class RotaryTest : public BackendTest {};
MIMO_ON_BACKENDS(RotaryTest);

struct Shape {
  int64_t tokens, heads, head_dim, stride;
};

// Positions jump about: packed samples and a KV cache do so too.
Values Positions(int64_t tokens) {
  Values positions(tokens);
  for (int64_t t = 0; t < tokens; ++t)
    positions[t] = static_cast<double>((t * 769 + 5) % kMaxPosition);
  return positions;
}

Values Rotated(const Backend& on, const Values& x, const Shape& shape,
               const Values& positions, bool inverse = false) {
  const DType statistic = AccumulatorOf(on.dtype);
  Values cos(kMaxPosition * shape.head_dim / 2), sin = cos;
  RotaryTable(cos.data(), sin.data(), kMaxPosition, shape.head_dim, kBase,
              DType::kFloat64);
  const Array heads(on, x), positions_on(on, DType::kInt32, positions);
  const Array cos_on(on, statistic, cos), sin_on(on, statistic, sin);
  Rotary({.x = heads.data(),
          .cos = cos_on.data(),
          .sin = sin_on.data(),
          .positions = static_cast<const int32_t*>(positions_on.data()),
          .tokens = shape.tokens,
          .heads = shape.heads,
          .head_dim = shape.head_dim,
          .stride = shape.stride,
          .max_position = kMaxPosition,
          .inverse = inverse,
          .dtype = on.dtype},
         StreamOf(on));
  return heads.Values();
}
Values Rotated(const Backend& on, const Values& x, const Shape& shape,
               bool inverse = false) {
  return Rotated(on, x, shape, Positions(shape.tokens), inverse);
}

TEST_P(RotaryTest, LeavesOtherColumns) {
  for (const Shape& shape : {Shape{5, 3, 8, 31}, Shape{5, 3, 16, 56}}) {
    const Values x = RandomValues(shape.tokens * shape.stride, 1);
    const Values y = Rotated(backend(), x, shape);
    for (int64_t t = 0; t < shape.tokens; ++t) {
      for (int64_t c = shape.heads * shape.head_dim; c < shape.stride; ++c)
        EXPECT_EQ(y[t * shape.stride + c], x[t * shape.stride + c]);
    }
  }
}

TEST(Rotary, IsTheFormula) {
  const Shape shape{5, 3, 8, 31};
  const Values x = RandomValues(shape.tokens * shape.stride, 1);
  const Values positions = Positions(shape.tokens);
  Values expected = x;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    for (int64_t n = 0; n < shape.heads; ++n) {
      for (int64_t i = 0; i < 4; ++i) {
        const double angle = positions[t] * std::pow(kBase, -i / 4.0);
        const int64_t low = t * shape.stride + n * 8 + i, high = low + 4;
        expected[low] = x[low] * std::cos(angle) - x[high] * std::sin(angle);
        expected[high] = x[high] * std::cos(angle) + x[low] * std::sin(angle);
      }
    }
  }
  EXPECT_LT(MaxAbs(Rotated(Oracle(), x, shape), expected), 1e-12);
}

// Cosine and sine are rounded once from double, then two products and a sum:
// three roundings of 2^-24; and the result's to the dtype.
TEST_P(RotaryTest, IsNearFloat64) {
  const double tolerance =
      1.8e-7 +
      (backend().dtype == DType::kBFloat16 ? Roundoff(DType::kBFloat16) : 0);
  for (const Shape& shape :
       {Shape{1, 1, 2, 2}, Shape{0, 2, 4, 8}, Shape{101, 3, 14, 45},
        Shape{67, 8, 64, 512}, Shape{9, 40, 128, 6144}, Shape{3, 1, 16, 21},
        Shape{5, 2, 2064, 4128}}) {
    SCOPED_TRACE(testing::Message()
                 << shape.tokens << " x " << shape.heads << " x "
                 << shape.head_dim << " of " << shape.stride);
    const Values x = RandomValues(shape.tokens * shape.stride, 1);
    for (bool inverse : {false, true}) {
      EXPECT_LE(RelativeL2(Rotated(backend(), x, shape, inverse),
                           Rotated(Oracle(), x, shape, inverse)),
                tolerance);
    }
  }
}

// A rotation's transpose is its inverse: that is why the backward is one.
TEST(Rotary, InverseIsTheGradient) {
  const Shape shape{3, 2, 6, 13};
  const Values x = RandomValues(3 * 13, 1), dy = RandomValues(3 * 13, 2);
  EXPECT_LT(GradCheck(
                [&](const Values& moved) {
                  return Dot(Rotated(Oracle(), moved, shape), dy);
                },
                x, Rotated(Oracle(), dy, shape, /*inverse=*/true)),
            1e-8);
  EXPECT_LT(
      MaxAbs(Rotated(Oracle(), Rotated(Oracle(), x, shape), shape, true), x),
      1e-14);
}

// <R_p q, R_k k> depends on p - k alone (arXiv:2104.09864, eq. 16).
TEST(Rotary, ProductsDependOnDistance) {
  const auto product = [&](double p, double k) {
    const Values x =
        Rotated(Oracle(), RandomValues(2 * 16, 1), {2, 1, 16, 16}, {p, k});
    double sum = 0;
    for (int i = 0; i < 16; ++i) sum += x[i] * x[16 + i];
    return sum;
  };
  EXPECT_NEAR(product(9, 4), product(1705, 1700), 1e-11);
  EXPECT_GT(std::fabs(product(9, 4) - product(9, 5)), 1e-3);
}

// The accumulator of bfloat16 is float32; each entry is rounded once.
TEST(Rotary, TableIsRoundedOnce) {
  std::vector<float> cos(100 * 4), sin(100 * 4);
  Values exact_cos(100 * 4), exact_sin(100 * 4);
  RotaryTable(cos.data(), sin.data(), 100, 8, kBase, DType::kBFloat16);
  RotaryTable(exact_cos.data(), exact_sin.data(), 100, 8, kBase,
              DType::kFloat64);
  for (int i = 0; i < 400; ++i) {
    EXPECT_EQ(cos[i], static_cast<float>(exact_cos[i]));
    EXPECT_EQ(sin[i], static_cast<float>(exact_sin[i]));
  }
}

// The same bits again, whatever the number of threads.
TEST_P(RotaryTest, IsDeterministic) {
  const Shape shape{517, 4, 34, 140};
  const Values x = RandomValues(517 * 140, 1);
  SetNumThreads(1);
  const Values y = Rotated(backend(), x, shape);
  SetNumThreads(3);
  EXPECT_EQ(Rotated(backend(), x, shape), y);
}

TEST(RotaryDeathTest, PositionPastTheTable) {
  float x[2] = {}, table[1] = {};
  const int32_t position = 1;
  EXPECT_DEATH(Rotary({.x = x,
                       .cos = table,
                       .sin = table,
                       .positions = &position,
                       .tokens = 1,
                       .heads = 1,
                       .head_dim = 2,
                       .stride = 2,
                       .max_position = 1,
                       .dtype = DType::kFloat32},
                      Stream()),
               "the position of row 0 is 1, not in \\[0, 1\\)");
}

}  // namespace
}  // namespace mimo::kernels
