// Gemm of operands in 8-bit floats.
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/gemm/gemm.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;
constexpr DType kE4M3 = DType::kFloat8E4M3, kE5M2 = DType::kFloat8E5M2;

class GemmFloat8Test : public BackendTest {};
MIMO_ON_BACKENDS(GemmFloat8Test);
INSTANTIATE_TEST_SUITE_P(OnOracle, GemmFloat8Test, testing::Values(Oracle()),
                         BackendName);

struct Case {
  int64_t m, n, k;
  DType a_dtype = kE4M3, b_dtype = kE4M3;
  float beta = 0;
};

struct Problem {
  Problem(const Backend& on, const Case& c)
      : on(on),
        c(c),
        a(on, c.a_dtype, RandomValues(c.m * c.k, 1, 256)),
        b(on, c.b_dtype, RandomValues(c.n * c.k, 2, 32)),
        a_scale(on, DType::kFloat32, {0.37}),
        b_scale(on, DType::kFloat32, {0.0021}),
        before(RandomValues(c.m * c.n, 3, 4)) {}

  GemmArgs Args(const Array& out) const {
    return {.a = a.data(),
            .b = b.data(),
            .c = out.data(),
            .m = c.m,
            .n = c.n,
            .k = c.k,
            .transpose_b = true,
            .beta = c.beta,
            .dtype = c.a_dtype,
            .c_dtype = on.dtype,
            .b_dtype = c.b_dtype,
            .a_scale = static_cast<const float*>(a_scale.data()),
            .b_scale = static_cast<const float*>(b_scale.data())};
  }
  Values Run() const {
    const Array out =
        c.beta == 0 ? Array::Poisoned(on, c.m * c.n) : Array(on, before);
    Gemm(Args(out), StreamOf(on));
    return out.Values();
  }

  // The product by its definition, and how far an entry may be from it. The
  // CPU rounds each of K sums (the terms are exact), the scales' product, its
  // product and the last sum. Hopper's tensor cores align 32 products and what
  // they are added to, to the largest of them, and cut 13 bits behind it
  // (DeepSeek-AI 2024, arXiv:2412.19437, section 3.5.2); float32 takes over
  // every 128 terms. Losses have their terms' signs, so n of them add up to
  // some sqrt(n) 2^-13 of the largest: in 128 terms, whose sum is at most a
  // third of the sum of their sizes, 2^-10 of that. The bound is 2^-9.
  struct Entry {
    double value, error;
  };
  std::vector<Entry> Wanted() const {
    const Values a_values = a.Values(), b_values = b.Values();
    const double scale = a_scale.Values()[0] * b_scale.Values()[0];
    const double unit = on.device == Device::kCuda
                            ? 0x1p-9
                            : (c.k + 4) * Roundoff(AccumulatorOf(on.dtype));
    std::vector<Entry> wanted;
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < c.n; ++j) {
        double sum = 0, size = 0;
        for (int64_t l = 0; l < c.k; ++l) {
          const double term = a_values[i * c.k + l] * b_values[j * c.k + l];
          sum += term;
          size += std::fabs(term);
        }
        const double start = c.beta == 0 ? 0 : before[i * c.n + j];
        const double value = scale * sum + start;
        wanted.push_back(
            {value, unit * scale * size +
                        2 * Roundoff(on.dtype) *
                            (std::fabs(scale * sum) + std::fabs(value))});
      }
    }
    return wanted;
  }

  const Backend on;
  const Case c;
  const Array a, b, a_scale, b_scale;
  const Values before;
};

TEST_P(GemmFloat8Test, IsTheScaledSumOfDecodedProducts) {
  for (auto [m, n, k] : {std::tuple{0, 16, 16},
                         {1, 16, 16},
                         {16, 16, 0},
                         {7, 48, 32},
                         {33, 16, 272},
                         {64, 64, 64},
                         {257, 144, 1040}}) {
    for (auto [a, b] :
         {std::pair{kE4M3, kE4M3}, {kE5M2, kE4M3}, {kE4M3, kE5M2}}) {
      for (float beta : {0.0f, 1.0f}) {
        const Problem problem(backend(), {m, n, k, a, b, beta});
        const Values out = problem.Run();
        const auto wanted = problem.Wanted();
        for (size_t i = 0; i < out.size(); ++i) {
          ASSERT_NEAR(out[i], wanted[i].value, wanted[i].error)
              << m << " x " << n << " x " << k << " of " << Name(a) << " and "
              << Name(b) << " beta " << beta << " at " << i;
        }
      }
    }
  }
}

// The slope of an activation is at most 1.13; its float32 form errs by 4e-6.
TEST_P(GemmFloat8Test, EpilogueIsTheFormula) {
  const Problem problem(backend(), {33, 48, 64});
  const Backend on = backend();
  const Values bias_values = RandomValues(48, 4);
  const Array bias(on, bias_values);
  const auto wanted = problem.Wanted();
  for (Activation activation :
       {Activation::kIdentity, Activation::kQuickGelu, Activation::kGeluTanh}) {
    const Array c = Array::Poisoned(on, 33 * 48);
    const Array z = Array::Poisoned(on, 33 * 48);
    GemmArgs args = problem.Args(c);
    args.bias = bias.data();
    args.activation = activation;
    if (activation != Activation::kIdentity) args.z = z.data();
    Gemm(args, StreamOf(on));
    const Values y = c.Values(), z_values = z.Values();
    for (size_t i = 0; i < y.size(); ++i) {
      const double x = wanted[i].value + bias_values[i % 48];
      const double error =
          wanted[i].error + 2 * Roundoff(on.dtype) * std::fabs(x);
      double out = x;
      if (activation == Activation::kQuickGelu)
        out = x / (1 + std::exp(-1.702 * x));
      if (activation == Activation::kGeluTanh)
        out = x / (1 + std::exp(-2 * 0.7978845608028654 *
                                (x + 0.044715 * x * x * x)));
      ASSERT_NEAR(y[i], out,
                  1.13 * error + Roundoff(on.dtype) * std::fabs(out) + 4e-6)
          << i;
      if (args.z != nullptr) {
        ASSERT_NEAR(z_values[i], x, error) << "z at " << i;
      }
    }
  }
}

TEST_P(GemmFloat8Test, AScaleThatIsNoNumberShowsEverywhere) {
  Problem problem(backend(), {5, 32, 48});
  const Array out = Array(backend(), Values(5 * 32, 0));
  const Array nan(backend(), DType::kFloat32,
                  {std::numeric_limits<double>::quiet_NaN()});
  for (bool of_a : {false, true}) {
    GemmArgs args = problem.Args(out);
    (of_a ? args.a_scale : args.b_scale) =
        static_cast<const float*>(nan.data());
    Gemm(args, StreamOf(backend()));
    for (double v : out.Values()) ASSERT_TRUE(std::isnan(v));
  }
}

TEST_P(GemmFloat8Test, IsDeterministic) {
  const Problem problem(backend(), {130, 64, 4096});
  SetNumThreads(1);
  const Values first = problem.Run();
  for (int threads : {1, 3}) {
    SetNumThreads(threads);
    EXPECT_EQ(problem.Run(), first);
  }
}

TEST(GemmFloat8DeathTest, SizesAndLayoutsThatTensorCoresCannotTake) {
  const Backend on = Oracle();
  const Problem problem(on, {1, 16, 16});
  const Array out = Array::Poisoned(on, 16);
  GemmArgs args = problem.Args(out);
  args.n = 8;
  EXPECT_DEATH(Gemm(args, {}), "1 x 8 x 16, wanted multiples of 16");
  args = problem.Args(out);
  args.transpose_b = false;
  EXPECT_DEATH(Gemm(args, {}), "wants a b\\^T, adjacent rows and scales");
  args = problem.Args(out);
  args.a_scale = nullptr;
  EXPECT_DEATH(Gemm(args, {}), "wants a b\\^T, adjacent rows and scales");
  args = problem.Args(out);
  args.dtype = args.b_dtype.emplace(kE5M2);
  EXPECT_DEATH(Gemm(args, {}), "Gemm of float8_e5m2 and float8_e5m2");
}

}  // namespace
}  // namespace mimo::kernels
