#include "kernels/gemm/gemm.h"

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

struct Case {
  int64_t m, n, k;
  bool transpose_a = false, transpose_b = false;
  int64_t pad = 0;  // extra elements in every row of a, b and c
  float beta = 0;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.m << " x " << c.n << " x " << c.k
             << (c.transpose_a ? " a^T" : "") << (c.transpose_b ? " b^T" : "")
             << " pad " << c.pad << " beta " << c.beta;
}

constexpr float kPadding = 7;

template <typename T>
struct Problem {
  explicit Problem(const Case& c)
      : c(c),
        lda((c.transpose_a ? c.m : c.k) + c.pad),
        ldb((c.transpose_b ? c.k : c.n) + c.pad),
        ldc(c.n + c.pad),
        a(RandomVector<T>((c.transpose_a ? c.k : c.m) * lda, 1)),
        b(RandomVector<T>((c.transpose_b ? c.n : c.k) * ldb, 2)),
        before(RandomVector<T>(c.m * ldc, 3)) {
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < ldc; ++j) {
        if (j >= c.n) before[i * ldc + j] = kPadding;
        if (j < c.n && c.beta == 0)
          before[i * ldc + j] = std::numeric_limits<T>::quiet_NaN();
      }
    }
  }

  std::vector<T> Run() const {
    std::vector<T> out = before;
    Gemm({.a = a.data(),
          .b = b.data(),
          .c = out.data(),
          .m = c.m,
          .n = c.n,
          .k = c.k,
          .transpose_a = c.transpose_a,
          .transpose_b = c.transpose_b,
          .lda = c.pad == 0 ? 0 : lda,
          .ldb = c.pad == 0 ? 0 : ldb,
          .ldc = c.pad == 0 ? 0 : ldc,
          .beta = c.beta,
          .dtype = DTypeOf<T>::value},
         {});
    return out;
  }

  // The literal sum in double. Each of the K + 1 terms is rounded when it is
  // multiplied and at most K + 1 times when it is added, so an entry is off by
  // at most (K + 2) epsilon/2 times the sum of the terms' sizes.
  void Check(const std::vector<T>& out) const {
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < c.n; ++j) {
        double sum = c.beta == 0 ? 0 : c.beta * double{before[i * ldc + j]};
        double size = std::fabs(sum);
        for (int64_t l = 0; l < c.k; ++l) {
          const double term =
              double{c.transpose_a ? a[l * lda + i] : a[i * lda + l]} *
              double{c.transpose_b ? b[j * ldb + l] : b[l * ldb + j]};
          sum += term;
          size += std::fabs(term);
        }
        ASSERT_NEAR(out[i * ldc + j], sum,
                    (c.k + 2) * std::numeric_limits<T>::epsilon() * size)
            << c << " at " << i << ", " << j;
      }
      for (int64_t j = c.n; j < ldc; ++j)
        ASSERT_EQ(out[i * ldc + j], kPadding) << c << ": outside of c";
    }
  }

  const Case c;
  const int64_t lda, ldb, ldc;
  std::vector<T> a, b, before;
};

template <typename T>
class GemmTest : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(GemmTest, Types);

TYPED_TEST(GemmTest, IsTheLiteralSum) {
  for (auto [m, n, k] : std::vector<std::tuple<int, int, int>>{{0, 3, 2},
                                                               {3, 0, 2},
                                                               {3, 2, 0},
                                                               {0, 0, 0},
                                                               {1, 1, 1},
                                                               {1, 7, 3},
                                                               {5, 1, 11},
                                                               {2, 1024, 128},
                                                               {16, 16, 8},
                                                               {17, 31, 13},
                                                               {64, 64, 64},
                                                               {97, 193, 67},
                                                               {128, 3, 257},
                                                               {401, 33, 5}}) {
    for (bool transpose_a : {false, true}) {
      for (bool transpose_b : {false, true}) {
        for (int pad : {0, 3}) {
          for (float beta : {0.0f, 1.0f}) {
            const Problem<TypeParam> problem(
                {m, n, k, transpose_a, transpose_b, pad, beta});
            problem.Check(problem.Run());
          }
        }
      }
    }
  }
}

// Cut along M, along N and along both, with a last block that is shorter; the
// shapes of the small models.
TYPED_TEST(GemmTest, BlocksAreTheLiteralSumWhateverTheThreads) {
  const int before = NumThreads();
  for (const Case& c : std::vector<Case>{{1201, 384, 128, false, true, 0, 0},
                                         {603, 1024, 128, false, true, 5, 0},
                                         {611, 128, 512, false, false, 0, 1},
                                         {384, 128, 1201, true, false, 0, 1},
                                         {128, 1030, 607, true, false, 3, 0},
                                         {2050, 2100, 33, false, true, 0, 1}}) {
    const Problem<TypeParam> problem(c);
    SetNumThreads(1);
    const std::vector<TypeParam> one = problem.Run();
    problem.Check(one);
    for (int threads : {2, 3}) {
      SetNumThreads(threads);
      EXPECT_EQ(problem.Run(), one) << c << ", threads " << threads;
    }
  }
  SetNumThreads(before);
}

}  // namespace
}  // namespace mimo::kernels
