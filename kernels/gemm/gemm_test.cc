#include "kernels/gemm/gemm.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <numbers>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/base/device.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

struct Case {
  int64_t m, n, k;
  bool transpose_a = false, transpose_b = false;
  int64_t pad = 0;    // extra elements in every row of a, b and c
  int64_t shift = 0;  // elements before the first of a, b and c
  float beta = 0;
  bool wide = false;  // c is of the accumulator's dtype
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.m << " x " << c.n << " x " << c.k
             << (c.transpose_a ? " a^T" : "") << (c.transpose_b ? " b^T" : "")
             << " pad " << c.pad << " shift " << c.shift << " beta " << c.beta
             << (c.wide ? " wide" : "");
}

constexpr double kPadding = 7;

void* Shifted(const Array& array, DType dtype, int64_t shift) {
  return static_cast<char*>(array.data()) + shift * SizeOf(dtype);
}

struct Problem {
  explicit Problem(const Case& c)
      : c(c),
        lda((c.transpose_a ? c.m : c.k) + c.pad),
        ldb((c.transpose_b ? c.k : c.n) + c.pad),
        ldc(c.n + c.pad),
        a(RandomValues(c.shift + (c.transpose_a ? c.k : c.m) * lda, 1)),
        b(RandomValues(c.shift + (c.transpose_b ? c.n : c.k) * ldb, 2)),
        before(RandomValues(c.shift + c.m * ldc, 3)) {
    for (int64_t i = 0; i < c.shift; ++i) before[i] = kPadding;
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < ldc; ++j) {
        double& x = before[c.shift + i * ldc + j];
        if (j >= c.n) x = kPadding;
        if (j < c.n && c.beta == 0)
          x = std::numeric_limits<double>::quiet_NaN();
      }
    }
  }

  Values Run(const Backend& on) const {
    const DType c_dtype = c.wide ? AccumulatorOf(on.dtype) : on.dtype;
    const Array a_in(on, a), b_in(on, b), out(on, c_dtype, before);
    Gemm({.a = Shifted(a_in, on.dtype, c.shift),
          .b = Shifted(b_in, on.dtype, c.shift),
          .c = Shifted(out, c_dtype, c.shift),
          .m = c.m,
          .n = c.n,
          .k = c.k,
          .transpose_a = c.transpose_a,
          .transpose_b = c.transpose_b,
          .lda = c.pad == 0 ? 0 : lda,
          .ldb = c.pad == 0 ? 0 : ldb,
          .ldc = c.pad == 0 ? 0 : ldc,
          .beta = c.beta,
          .dtype = on.dtype,
          .c_dtype = c_dtype},
         StreamOf(on));
    return out.Values();
  }

  // The literal sum of an entry: the product, all of it, and the sum of the
  // terms' sizes.
  struct Sum {
    double product, value, size;
  };
  Sum At(int64_t i, int64_t j) const {
    const double start = c.beta == 0 ? 0 : before[c.shift + i * ldc + j];
    double sum = 0, size = std::fabs(start);
    for (int64_t l = 0; l < c.k; ++l) {
      const double term =
          a[c.shift + (c.transpose_a ? l * lda + i : i * lda + l)] *
          b[c.shift + (c.transpose_b ? j * ldb + l : l * ldb + j)];
      sum += term;
      size += std::fabs(term);
    }
    return {sum, start + sum, size};
  }

  // The inputs are exact in every dtype. Each of the K + 1 terms is rounded
  // when it is multiplied and at most K + 1 times when it is added, to the
  // accumulator's dtype; tensor cores cut off, which errs by twice as much as
  // rounding: (K + 2) 2 u times the sum of the terms' sizes. Then the entry is
  // rounded to c's dtype, where some of cuBLASLt's kernels first round the
  // product and then what it is added to. Of every `step`-th row.
  void Check(const Backend& on, const Values& out, int64_t step = 1) const {
    const DType accumulator = AccumulatorOf(on.dtype);
    const double unit = (c.k + 2) * 2 * Roundoff(accumulator);
    const double last = Roundoff(c.wide ? accumulator : on.dtype);
    for (int64_t i = 0; i < c.shift; ++i) ASSERT_EQ(out[i], kPadding);
    for (int64_t i = 0; i < c.m; i += step) {
      const double* row = &out[c.shift + i * ldc];
      for (int64_t j = 0; j < c.n; ++j) {
        const Sum sum = At(i, j);
        ASSERT_NEAR(row[j], sum.value,
                    unit * sum.size +
                        last * (std::fabs(sum.product) + std::fabs(sum.value)))
            << c << " at " << i << ", " << j;
      }
      for (int64_t j = c.n; j < ldc; ++j)
        ASSERT_EQ(row[j], kPadding) << c << ": outside of c";
    }
  }

  const Case c;
  const int64_t lda, ldb, ldc;
  Values a, b, before;
};

class GemmTest : public BackendTest {};
MIMO_ON_BACKENDS(GemmTest);
INSTANTIATE_TEST_SUITE_P(OnOracle, GemmTest, testing::Values(Oracle()),
                         BackendName);

TEST_P(GemmTest, IsTheLiteralSum) {
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
        for (auto [pad, shift] : {std::pair{0, 0}, {3, 0}, {8, 1}}) {
          for (float beta : {0.0f, 1.0f}) {
            for (bool wide : {false, true}) {
              const Problem problem(
                  {m, n, k, transpose_a, transpose_b, pad, shift, beta, wide});
              problem.Check(backend(), problem.Run(backend()));
              if (HasFatalFailure()) return;
            }
          }
        }
      }
    }
  }
}

// Shapes of small models. On the CPU: cut along M, along N and along both, with
// a last block that is shorter.
TEST_P(GemmTest, BlocksAreTheLiteralSumWhateverTheThreads) {
  const int before = NumThreads();
  for (const Case& c :
       std::vector<Case>{{1201, 384, 128, false, true, 0, 0, 0},
                         {603, 1024, 128, false, true, 5, 0, 0},
                         {611, 128, 512, false, false, 0, 0, 1},
                         {384, 128, 1201, true, false, 0, 0, 1, true},
                         {128, 1030, 607, true, false, 3, 0, 0, true},
                         {2050, 2100, 33, false, true, 0, 0, 1}}) {
    const Problem problem(c);
    SetNumThreads(1);
    const Values one = problem.Run(backend());
    problem.Check(backend(), one);
    for (int threads : {2, 3}) {
      SetNumThreads(threads);
      EXPECT_EQ(problem.Run(backend()), one) << c << ", threads " << threads;
    }
  }
  SetNumThreads(before);
}

// Few rows and columns and a long K: what a GPU splits along K.
TEST_P(GemmTest, LongSumsAreDeterministic) {
  for (const Case& c :
       std::vector<Case>{{64, 64, 16384, false, true},
                         {8, 128, 9999, true, false, 0, 0, 1, true}}) {
    const Problem problem(c);
    const Values first = problem.Run(backend());
    problem.Check(backend(), first);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(problem.Run(backend()), first) << c;
  }
}

double Apply(Activation activation, double z) {
  switch (activation) {
    case Activation::kIdentity:
      return z;
    case Activation::kGelu:
      return z * std::erfc(-z / std::numbers::sqrt2) / 2;
    case Activation::kGeluTanh:
      return z / (1 + std::exp(-2 * std::sqrt(2 / std::numbers::pi) *
                               (z + 0.044715 * z * z * z)));
    case Activation::kQuickGelu:
      return z / (1 + std::exp(-1.702 * z));
    case Activation::kSilu:
      return z / (1 + std::exp(-z));
    case Activation::kRelu:
      return std::max(z, 0.0);
  }
  return 0;
}

// z errs as above, with one more term; the slope of an activation is at most
// 1.13, and its float32 form errs by 4e-6 where |z| is under 9. Where the
// activation is a kernel of its own it starts from the rounded z. In cuBLASLt's
// GELU tanh is the hardware's, off by up to 2^-11, and y by half of z times
// that.
TEST_P(GemmTest, EpilogueIsTheFormula) {
  const Backend on = backend();
  const double last = Roundoff(on.dtype);
  for (auto [m, n, k] : {std::tuple{5, 7, 3},
                         {3, 8, 0},
                         {33, 24, 17},
                         {1, 16, 64},
                         {70, 136, 40}}) {
    const Problem problem({m, n, k, false, true});
    const Values bias_values = RandomValues(n, 4);
    for (bool with_bias : {false, true}) {
      for (Activation activation :
           {Activation::kIdentity, Activation::kGelu, Activation::kGeluTanh,
            Activation::kQuickGelu, Activation::kSilu, Activation::kRelu}) {
        for (bool keep_z : {false, true}) {
          if (keep_z && activation == Activation::kIdentity) continue;
          const Array a(on, problem.a), b(on, problem.b);
          const Array bias(on, bias_values);
          const Array c = Array::Poisoned(on, m * n);
          const Array z = Array::Poisoned(on, m * n);
          Gemm({.a = a.data(),
                .b = b.data(),
                .c = c.data(),
                .m = m,
                .n = n,
                .k = k,
                .transpose_b = true,
                .dtype = on.dtype,
                .bias = with_bias ? bias.data() : nullptr,
                .activation = activation,
                .z = keep_z ? z.data() : nullptr},
               StreamOf(on));
          const Values c_values = c.Values(), z_values = z.Values();
          for (int64_t i = 0; i < m * n; ++i) {
            Problem::Sum sum = problem.At(i / n, i % n);
            if (with_bias) {
              sum.value += bias_values[i % n];
              sum.size += std::fabs(bias_values[i % n]);
            }
            const double error =
                (k + 3) * 2 * Roundoff(AccumulatorOf(on.dtype)) * sum.size +
                last * (std::fabs(sum.product) + std::fabs(sum.value));
            const double y = Apply(activation, sum.value);
            const double own = activation == Activation::kGeluTanh &&
                                       on.dtype == DType::kBFloat16
                                   ? 0x1p-12 * std::fabs(sum.value)
                                   : 4e-6;
            ASSERT_NEAR(c_values[i], y,
                        1.13 * error + last * std::fabs(y) + own)
                << m << " x " << n << " x " << k << " at " << i << " bias "
                << with_bias << " activation " << static_cast<int>(activation);
            if (keep_z) {
              ASSERT_NEAR(z_values[i], sum.value, error) << "z at " << i;
            }
          }
        }
      }
    }
  }
}

TEST_P(GemmTest, TuningIsKeptInAFile) {
  const std::string path = testing::TempDir() + "gemm_plans_" +
                           testing::PrintToString(backend()) + ".txt";
  const Problem problem({256, 384, 512, false, true, 0, 0, 1});
  const auto check = [&] { problem.Check(backend(), problem.Run(backend())); };
  const auto contents = [&] {
    std::ifstream in(path);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  std::remove(path.c_str());
  AutotuneGemm(path, backend().device);
  check();
  const std::string written = contents();
  EXPECT_EQ(written.empty(), backend().device == Device::kCpu);
  // Read again: nothing is tuned, so nothing is written.
  AutotuneGemm(path, backend().device);
  std::remove(path.c_str());
  check();
  EXPECT_EQ(contents(), "");
  // Of another machine, or cut off: ignored, and written anew.
  for (const std::string& damaged :
       {std::string("mimo-gemm 2 cublasLt 0 another GPU\n1 2 3\n"),
        written.substr(0, written.size() - std::min<size_t>(9, written.size())),
        std::string("\x01\xff", 2)}) {
    std::ofstream(path) << damaged;
    AutotuneGemm(path, backend().device);
    check();
    if (backend().device == Device::kCuda) {
      EXPECT_EQ(contents().substr(0, contents().find('\n')),
                written.substr(0, written.find('\n')));
    }
  }
  AutotuneGemm("", backend().device);
  check();
  std::remove(path.c_str());
}

// Products of LLaVA-7B (eight samples of 704 tokens), of its CLIP's backward,
// and of odd sizes: by the tuned plan, again, and by the plan from the file.
TEST(GemmTuned, ModelShapesAreTheLiteralSumAndTheSameBits) {
  if (const absl::Status status = CheckDevice(Device::kCuda); !status.ok())
    GTEST_SKIP() << status.message();
  const Backend on = {Device::kCuda, DType::kBFloat16};
  const std::string path = testing::TempDir() + "gemm_plans_models.txt";
  for (const Case& c :
       std::vector<Case>{{5632, 4096, 4096, false, true},
                         {4616, 1024, 4096},
                         {577, 1001, 1023, true, false, 0, 0, 1, true}}) {
    const Problem problem(c);
    std::remove(path.c_str());
    AutotuneGemm(path, on.device);
    const Values tuned = problem.Run(on);
    problem.Check(on, tuned, c.m / 16);
    EXPECT_TRUE(problem.Run(on) == tuned) << c;
    AutotuneGemm(path, on.device);
    EXPECT_EQ(std::remove(path.c_str()), 0) << c << ": no plan was kept";
    EXPECT_TRUE(problem.Run(on) == tuned) << c;
    EXPECT_FALSE(std::ifstream(path)) << c << ": tuned anew";
  }
  AutotuneGemm("", on.device);
}

TEST(GemmDeathTest, EpilogueWithBeta) {
  float v = 1;
  EXPECT_DEATH(Gemm({.a = &v,
                     .b = &v,
                     .c = &v,
                     .m = 1,
                     .n = 1,
                     .k = 1,
                     .beta = 1,
                     .dtype = DType::kFloat32,
                     .bias = &v},
                    Stream()),
               "an epilogue wants beta 0");
}

}  // namespace
}  // namespace mimo::kernels
