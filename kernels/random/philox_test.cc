#include "kernels/random/philox.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo {
namespace {

// kat_vectors of Random123, the paper's library: philox4x32, 10 rounds.
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox(0, 0, 0),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxSequence, IsTheBlocksInOrder) {
  PhiloxSequence sequence(5, 6);
  for (uint64_t counter = 0; counter < 3; ++counter)
    for (uint32_t word : Philox(5, 6, counter))
      EXPECT_EQ(sequence.Next(), word);
}

TEST(PhiloxSequence, ACopyGoesOnAlike) {
  PhiloxSequence sequence(1, 2);
  for (int i = 0; i < 7; ++i) sequence.Next();
  PhiloxSequence copy = sequence;
  for (int i = 0; i < 9; ++i) EXPECT_EQ(copy.Normal(), sequence.Normal());
}

// The moments E x^k, k = 1..4, of n draws, each within five of its standard
// deviations sqrt((E x^2k - (E x^k)^2) / n): wrong once in 2 million.
void ExpectMoments(const std::vector<double>& x,
                   const std::array<double, 9>& moments) {
  const double n = static_cast<double>(x.size());
  for (int k = 1; k <= 4; ++k) {
    double sum = 0;
    for (double v : x) sum += std::pow(v, k);
    const double deviation =
        std::sqrt((moments[2 * k] - moments[k] * moments[k]) / n);
    EXPECT_NEAR(sum / n, moments[k], 5 * deviation) << "moment " << k;
  }
}
constexpr std::array<double, 9> kNormalMoments = {1, 0, 1, 0, 3, 0, 15, 0, 105};
constexpr std::array<double, 9> kUniformMoments = {
    1, 1. / 2, 1. / 3, 1. / 4, 1. / 5, 1. / 6, 1. / 7, 1. / 8, 1. / 9};

TEST(PhiloxSequence, Moments) {
  PhiloxSequence sequence(3, 4);
  std::vector<double> normal(100000), uniform(100000);
  for (double& v : normal) v = sequence.Normal();
  for (double& v : uniform) v = sequence.Uniform();
  ExpectMoments(normal, kNormalMoments);
  ExpectMoments(uniform, kUniformMoments);
  EXPECT_GE(*std::min_element(uniform.begin(), uniform.end()), 0);
  EXPECT_LT(*std::max_element(uniform.begin(), uniform.end()), 1);
}

// n = 3 * 2^62: taking a 64-bit value mod n would draw the lowest 2^62 values
// twice as often, a share of 1/2 rather than 1/3.
TEST(PhiloxSequence, BelowHasNoBias) {
  PhiloxSequence sequence(7, 8);
  const uint64_t third = uint64_t{1} << 62;
  std::array<int, 3> counts = {};
  for (int i = 0; i < 30000; ++i) {
    const uint64_t value = sequence.Below(3 * third);
    ASSERT_LT(value, 3 * third);
    ++counts[value / third];
  }
  // Five standard deviations of a binomial: 5 sqrt(30000 * 1/3 * 2/3) = 408.
  for (int count : counts) EXPECT_NEAR(count, 10000, 408);
}

TEST(PhiloxSequence, BelowSmall) {
  PhiloxSequence sequence(9, 10);
  EXPECT_EQ(sequence.Below(1), 0u);
  std::array<int, 7> counts = {};
  for (int i = 0; i < 70000; ++i) ++counts[sequence.Below(7)];
  // 5 sqrt(70000 * 1/7 * 6/7) = 463
  for (int count : counts) EXPECT_NEAR(count, 10000, 463);
}

}  // namespace
}  // namespace mimo

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

class RandomFillTest : public BackendTest {};
MIMO_ON_BACKENDS(RandomFillTest);

RandomFillArgs Args(const Array& out, int64_t size, uint64_t offset,
                    DType dtype) {
  return {.out = out.data(),
          .size = size,
          .seed = 11,
          .stream = 12,
          .offset = offset,
          .dtype = dtype};
}

Values Normals(const Backend& on, int64_t size, uint64_t offset = 0,
               double mean = 0, double std = 1) {
  const Array out = Array::Poisoned(on, size);
  FillNormal(Args(out, size, offset, on.dtype), mean, std, StreamOf(on));
  return out.Values();
}

// From 1 to the next value of dtype.
double Ulp(DType dtype) { return dtype == DType::kFloat32 ? 0x1p-23 : 0x1p-7; }

// x to the nearest of dtype, in one rounding.
double Rounded(double x, DType dtype) {
  if (x == 0) return 0;
  const double ulp = std::ldexp(Ulp(dtype), std::ilogb(x));
  return std::nearbyint(x / ulp) * ulp;
}

TEST(RandomFill, Moments) {
  ExpectMoments(Normals(Oracle(), 100003), kNormalMoments);
}

// Neighbours share a block of Philox; they must not be correlated. The product
// of independent variables of variance 1 has variance 1.
TEST(RandomFill, NeighboursAreIndependent) {
  const Values x = Normals(Oracle(), 100003);
  for (int lag = 1; lag <= 4; ++lag) {
    double sum = 0;
    for (int i = 0; i < 99999; ++i) sum += x[i] * x[i + lag];
    EXPECT_NEAR(sum / 99999, 0, 5 / std::sqrt(99999)) << "lag " << lag;
  }
}

TEST(RandomFill, MeanAndRange) {
  const Values plain = Normals(Oracle(), 1001);
  const Values moved = Normals(Oracle(), 1001, 0, 5, 0.02);
  for (int i = 0; i < 1001; ++i)
    EXPECT_NEAR(moved[i], 5 + 0.02 * plain[i], 1e-15 * 5);
}

// From doubles that differ in their last bits (2^-52 of some units): one in
// 2^(53-24-2) may fall on the other side of a rounding to float32, none of
// these.
TEST_P(RandomFillTest, IsFloat64Rounded) {
  for (int64_t size : {0, 1, 4099, 100003}) {
    Values normal = Normals(Oracle(), size, 3);
    for (double& x : normal) x = Rounded(x, backend().dtype);
    EXPECT_EQ(Normals(backend(), size, 3), normal);
  }
}

TEST_P(RandomFillTest, ElementDependsOnItsIndexAlone) {
  const Values normal = Normals(backend(), 10007);
  for (int64_t begin : {1, 2, 3, 4, 5003}) {
    EXPECT_EQ(Normals(backend(), 10007 - begin, begin),
              Values(normal.begin() + begin, normal.end()));
  }
}

// Columns of a matrix, each row of which begins elsewhere in a block.
TEST_P(RandomFillTest, ASliceOfAMatrixHasItsElements) {
  constexpr int64_t kRows = 5, kWidth = 4099, kFirst = 7;
  const Values whole = Normals(backend(), kRows * kWidth);
  for (int64_t columns : {1, 2, 6, 1001, 4092}) {
    Values wanted;
    for (int64_t r = 0; r < kRows; ++r) {
      const auto begin = whole.begin() + r * kWidth + kFirst;
      wanted.insert(wanted.end(), begin, begin + columns);
    }
    const Array out = Array::Poisoned(backend(), kRows * columns);
    RandomFillArgs args = Args(out, kRows * columns, kFirst, backend().dtype);
    args.columns = columns;
    args.stride = kWidth;
    FillNormal(args, 0, 1, StreamOf(backend()));
    EXPECT_EQ(out.Values(), wanted) << columns << " columns";
  }
}

TEST_P(RandomFillTest, IsDeterministic) {
  SetNumThreads(1);
  const Values normal = Normals(backend(), 100003, 7);
  SetNumThreads(3);
  EXPECT_EQ(Normals(backend(), 100003, 7), normal);
}

}  // namespace
}  // namespace mimo::kernels
