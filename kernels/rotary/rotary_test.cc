#include "kernels/rotary/rotary.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

constexpr double kBase = 10000;
constexpr int64_t kMaxPosition = 2048;

struct Shape {
  int64_t tokens, heads, head_dim, stride;
};

// Positions jump about: packed samples and a KV cache do so too.
std::vector<int32_t> Positions(int64_t tokens) {
  std::vector<int32_t> positions(tokens);
  for (int64_t t = 0; t < tokens; ++t)
    positions[t] = static_cast<int32_t>((t * 769 + 5) % kMaxPosition);
  return positions;
}

template <typename T>
std::vector<T> Rotated(std::vector<T> x, const Shape& shape,
                       bool inverse = false) {
  std::vector<T> cos = Poisoned<T>(kMaxPosition * shape.head_dim / 2);
  std::vector<T> sin = cos;
  RotaryTable(cos.data(), sin.data(), kMaxPosition, shape.head_dim, kBase,
              DTypeOf<T>::value);
  const std::vector<int32_t> positions = Positions(shape.tokens);
  Rotary({.x = x.data(),
          .cos = cos.data(),
          .sin = sin.data(),
          .positions = positions.data(),
          .tokens = shape.tokens,
          .heads = shape.heads,
          .head_dim = shape.head_dim,
          .stride = shape.stride,
          .max_position = kMaxPosition,
          .inverse = inverse,
          .dtype = DTypeOf<T>::value},
         Stream());
  return x;
}

TEST(Rotary, IsTheFormulaAndLeavesOtherColumns) {
  const Shape shape{5, 3, 8, 31};
  const auto x = RandomVector<double>(shape.tokens * shape.stride, 1);
  const std::vector<double> y = Rotated(x, shape);
  const std::vector<int32_t> positions = Positions(shape.tokens);
  std::vector<double> expected = x;
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
  EXPECT_LT(MaxAbs(y, expected), 1e-12);
  for (int64_t t = 0; t < shape.tokens; ++t) {
    for (int64_t c = 24; c < 31; ++c)
      EXPECT_EQ(y[t * shape.stride + c], x[t * shape.stride + c]);
  }
}

// Cosine and sine are rounded once from double, then two products and a sum:
// three roundings of 2^-24.
TEST(Rotary, Float32IsNearFloat64) {
  for (const Shape& shape : {Shape{1, 1, 2, 2}, Shape{0, 2, 4, 8},
                             Shape{101, 3, 14, 45}, Shape{67, 8, 64, 512}}) {
    const int64_t size = shape.tokens * shape.stride;
    EXPECT_LE(RelativeL2(Rotated(RandomVector<float>(size, 1), shape),
                         Rotated(RandomVector<double>(size, 1), shape)),
              1.8e-7);
  }
}

// A rotation's transpose is its inverse: that is why the backward is one.
TEST(Rotary, InverseIsTheGradient) {
  const Shape shape{3, 2, 6, 13};
  const auto x = RandomVector<double>(3 * 13, 1);
  const auto dy = RandomVector<double>(3 * 13, 2);
  EXPECT_LT(GradCheck(
                [&](const std::vector<double>& moved) {
                  return Dot(Rotated(moved, shape), dy);
                },
                x, Rotated(dy, shape, /*inverse=*/true)),
            1e-8);
  EXPECT_LT(MaxAbs(Rotated(Rotated(x, shape), shape, true), x), 1e-14);
}

// <R_p q, R_k k> depends on p - k alone (arXiv:2104.09864, eq. 16).
TEST(Rotary, ProductsDependOnDistance) {
  std::vector<double> cos(kMaxPosition * 8), sin(kMaxPosition * 8);
  RotaryTable(cos.data(), sin.data(), kMaxPosition, 16, kBase, DType::kFloat64);
  const auto product = [&](int32_t p, int32_t k) {
    const int32_t positions[2] = {p, k};
    auto x = RandomVector<double>(2 * 16, 1);
    Rotary({.x = x.data(),
            .cos = cos.data(),
            .sin = sin.data(),
            .positions = positions,
            .tokens = 2,
            .heads = 1,
            .head_dim = 16,
            .stride = 16,
            .max_position = kMaxPosition,
            .dtype = DType::kFloat64},
           Stream());
    double sum = 0;
    for (int i = 0; i < 16; ++i) sum += x[i] * x[16 + i];
    return sum;
  };
  EXPECT_NEAR(product(9, 4), product(1705, 1700), 1e-11);
  EXPECT_GT(std::fabs(product(9, 4) - product(9, 5)), 1e-3);
}

TEST(Rotary, ThreadsDoNotChangeABit) {
  const Shape shape{517, 4, 34, 140};
  const auto x = RandomVector<float>(517 * 140, 1);
  SetNumThreads(1);
  const std::vector<float> y = Rotated(x, shape);
  SetNumThreads(3);
  EXPECT_EQ(Rotated(x, shape), y);
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
               "positions\\[0\\] is 1, not in \\[0, 1\\)");
}

}  // namespace
}  // namespace mimo::kernels
