#include "kernels/loss/head_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <ostream>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/device.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

constexpr double kDloss = 0.375;

class HeadCrossEntropyTest : public BackendTest {};
MIMO_ON_BACKENDS(HeadCrossEntropyTest);

enum class Labels { kAll, kSome, kNone };

struct Case {
  int64_t tokens, hidden, vocab, chunk;
  Labels labels = Labels::kSome;
  float beta = 0;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "T " << c.tokens << " H " << c.hidden << " V " << c.vocab
             << " chunk " << c.chunk << " labels " << static_cast<int>(c.labels)
             << " beta " << c.beta;
}

const std::vector<Case>& Cases() {
  static const auto* const cases = new std::vector<Case>{
      {0, 8, 5, 4},
      {0, 8, 5, 4, Labels::kSome, 1},
      {1, 1, 1, 1, Labels::kAll},
      {1, 8, 13, 7, Labels::kNone},
      {9, 8, 13, 4, Labels::kNone, 1},
      {64, 16, 32, 16, Labels::kAll},
      {101, 31, 97, 17},
      {101, 31, 97, 17, Labels::kSome, 1},
      {300, 64, 1031, 128},
      {67, 128, 1024, 1000, Labels::kAll, 1},
  };
  return *cases;
}

struct Inputs {
  explicit Inputs(const Case& c)
      : c(c),
        x(RandomValues(c.tokens * c.hidden, 1)),
        weight(RandomValues(c.vocab * c.hidden, 2)),
        old_dweight(RandomValues(c.vocab * c.hidden, 3)) {
    std::mt19937 bits(4);
    for (int64_t t = 0; t < c.tokens; ++t) {
      const int label = bits() % c.vocab;
      const bool ignored = c.labels == Labels::kNone ||
                           (c.labels == Labels::kSome && bits() % 3 != 0);
      labels.push_back(ignored ? (t % 2 == 0 ? -100 : -1) : label);
    }
  }
  Case c;
  Values x, weight, labels, old_dweight;
};

struct Outputs {
  double loss;
  Values lse, dx, dweight;
};

enum class How { kApart, kAtOnce };
enum class Want { kBoth, kDx, kDweight };

struct Options {
  How how = How::kApart;
  Want want = Want::kBoth;
  std::optional<DType> logits_dtype = {};  // the backend's
  const VocabularyPart* part = nullptr;
};

Outputs Compute(const Backend& on, const Inputs& in,
                const Options& options = {}) {
  const auto [how, want, wider, part] = options;
  const DType logits_dtype = wider.value_or(on.dtype);
  const Case& c = in.c;
  const DType accumulator = AccumulatorOf(on.dtype);
  Values x_values = in.x;
  for (int64_t t = 0; t < c.tokens && on.device == Device::kCpu; ++t) {
    if (in.labels[t] >= 0) continue;
    // Not read on the CPU: ignored rows enter no product.
    for (int64_t h = 0; h < c.hidden; ++h)
      x_values[t * c.hidden + h] = std::nan("");
  }
  const Array x(on, x_values), weight(on, in.weight);
  const Array labels(on, DType::kInt32, in.labels);
  const Array loss = Array::Poisoned(on, DType::kFloat64, 1);
  const Array lse = Array::Poisoned(on, DType::kFloat64, c.tokens);
  double* const lse_data = static_cast<double*>(lse.data());
  const Array dloss(on, DType::kFloat64, {kDloss});
  const Array dx = Array::Poisoned(on, in.x.size());
  const Array dweight = c.beta == 0
                            ? Array::Poisoned(on, accumulator, in.weight.size())
                            : Array(on, accumulator, in.old_dweight);
  const int64_t bytes = HeadCrossEntropyWorkspaceBytes(
      c.chunk, c.hidden, c.vocab, on.dtype, logits_dtype, on.device);
  const Array workspace = Array::Workspace(on, bytes);
  const HeadCrossEntropyForwardBackwardArgs args = {
      .x = x.data(),
      .weight = weight.data(),
      .labels = static_cast<const int32_t*>(labels.data()),
      .loss = static_cast<double*>(loss.data()),
      .dloss = static_cast<const double*>(dloss.data()),
      .dx = want == Want::kDweight ? nullptr : dx.data(),
      .dweight = want == Want::kDx ? nullptr : dweight.data(),
      .dweight_beta = c.beta,
      .workspace = workspace.data(),
      .tokens = c.tokens,
      .hidden = c.hidden,
      .vocab = c.vocab,
      .chunk = c.chunk,
      .part = part,
      .dtype = on.dtype,
      .logits_dtype = logits_dtype};
  if (how == How::kAtOnce) {
    HeadCrossEntropyForwardBackward(args, StreamOf(on));
    return {loss.Values()[0], {}, dx.Values(), dweight.Values()};
  }
  HeadCrossEntropyForward(
      {args.x, args.weight, args.labels, args.loss, lse_data, args.workspace,
       c.tokens, c.hidden, c.vocab, c.chunk, part, on.dtype, logits_dtype},
      StreamOf(on));
  const Array fresh = Array::Workspace(on, bytes);
  HeadCrossEntropyBackward(
      {args.x, args.weight, args.labels, lse_data, args.dloss, args.dx,
       args.dweight, c.beta, fresh.data(), c.tokens, c.hidden, c.vocab, c.chunk,
       part, on.dtype, logits_dtype},
      StreamOf(on));
  return {loss.Values()[0], lse.Values(), dx.Values(), dweight.Values()};
}

// Everything token by token, with what it can be off by in `dtype`.
//   A logit: H roundings of the sum of |x w|, u each; where logits are bfloat16
//   one more of 2^-8: delta. The softmax and lse - logit move by twice the
//   largest delta, exponentials and their sum by 2e-5 in float32
//   (cross_entropy_test); dlogits are rounded once in bfloat16. dx and dweight
//   are sums of dlogits times w or x, with V or T roundings, and dx is stored
//   in dtype.
struct Literal {
  Literal(const Inputs& in, DType dtype, DType logits_dtype)
      : lse(in.c.tokens),
        lse_error(in.c.tokens),
        dx(in.x.size()),
        dx_error(in.x.size()),
        dweight(in.weight.size()),
        dweight_error(in.weight.size()) {
    const Case& c = in.c;
    const double u = dtype == DType::kFloat64 ? 0x1p-53 : 0x1p-24;
    const double store = dtype == DType::kBFloat16 ? 0x1p-8 : u;
    const double store_logit = logits_dtype == DType::kBFloat16 ? 0x1p-8 : u;
    const double exponential = dtype == DType::kFloat64 ? 1e-14 : 2e-5;
    if (c.beta == 1) dweight = in.old_dweight;
    for (int64_t t = 0; t < c.tokens; ++t) {
      if (in.labels[t] < 0) continue;
      const double* x = in.x.data() + t * c.hidden;
      Values z(c.vocab);
      double sum = 0, delta = 0;
      for (int64_t v = 0; v < c.vocab; ++v) {
        const double* w = in.weight.data() + v * c.hidden;
        double absolute = 0;
        for (int64_t h = 0; h < c.hidden; ++h) {
          z[v] += x[h] * w[h];
          absolute += std::fabs(x[h] * w[h]);
        }
        delta = std::max(
            delta, c.hidden * u * absolute + store_logit * std::fabs(z[v]));
        sum += std::exp(z[v]);
      }
      lse[t] = std::log(sum);
      const int64_t label = static_cast<int64_t>(in.labels[t]);
      lse_error[t] = 2 * delta + exponential + u * std::fabs(lse[t]);
      loss += lse[t] - z[label];
      loss_error += 2 * lse_error[t];
      for (int64_t v = 0; v < c.vocab; ++v) {
        const double p = std::exp(z[v] - lse[t]);
        const double d = kDloss * (p - (v == label ? 1 : 0));
        // The label's p - 1 is rounded where it is formed.
        const double off = 2 * lse_error[t] * kDloss * p +
                           (store + (c.vocab + c.tokens) * u) * std::fabs(d) +
                           (v == label ? u * kDloss : 0);
        for (int64_t h = 0; h < c.hidden; ++h) {
          const int64_t w = v * c.hidden + h;
          dx[t * c.hidden + h] += d * in.weight[w];
          dx_error[t * c.hidden + h] += off * std::fabs(in.weight[w]);
          dweight[w] += d * x[h];
          dweight_error[w] += off * std::fabs(x[h]);
        }
      }
    }
    for (size_t i = 0; i < dx.size(); ++i)
      dx_error[i] += store * std::fabs(dx[i]);
    // Added to what was there in some chunks, a rounding each.
    for (size_t i = 0; i < dweight.size(); ++i)
      dweight_error[i] += c.tokens * u * (1 + std::fabs(dweight[i]));
  }

  double loss = 0, loss_error = 0;
  Values lse, lse_error, dx, dx_error, dweight, dweight_error;
};

void ExpectNear(const Values& got, const Values& wanted, const Values& error,
                const char* what) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], wanted[i], error[i]) << what << "[" << i << "]";
}

TEST_P(HeadCrossEntropyTest, IsTheFormula) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(testing::Message() << c);
    const Inputs in(c);
    for (auto [on, logits_dtype] : {std::pair(backend(), backend().dtype),
                                    {backend(), AccumulatorOf(backend().dtype)},
                                    {Oracle(), DType::kFloat64}}) {
      const Literal literal(in, on.dtype, logits_dtype);
      for (How how : {How::kApart, How::kAtOnce}) {
        const Outputs out =
            Compute(on, in, {.how = how, .logits_dtype = logits_dtype});
        EXPECT_NEAR(out.loss, literal.loss, literal.loss_error);
        ExpectNear(out.dx, literal.dx, literal.dx_error, "dx");
        ExpectNear(out.dweight, literal.dweight, literal.dweight_error,
                   "dweight");
        for (int64_t t = 0; t < c.tokens; ++t) {
          if (in.labels[t] < 0) {
            for (int64_t h = 0; h < c.hidden; ++h)
              ASSERT_EQ(out.dx[t * c.hidden + h], 0);
            EXPECT_TRUE(out.lse.empty() || std::isnan(out.lse[t]))
                << "lse of an ignored token";
          } else if (!out.lse.empty()) {
            EXPECT_NEAR(out.lse[t], literal.lse[t], literal.lse_error[t]);
          }
        }
      }
    }
  }
}

TEST_P(HeadCrossEntropyTest, EachGradientAlone) {
  for (How how : {How::kApart, How::kAtOnce}) {
    const Inputs in({101, 31, 97, 17});
    const Outputs both = Compute(backend(), in, {how});
    EXPECT_EQ(Compute(backend(), in, {how, Want::kDx}).dx, both.dx);
    EXPECT_EQ(Compute(backend(), in, {how, Want::kDweight}).dweight,
              both.dweight);
  }
}

// The chunks of two parts, each with the whole's lse in the place of its own.
TEST_P(HeadCrossEntropyTest, PartsOfTheVocabularyMakeTheWhole) {
  const Backend on = backend();
  const DType accumulator = AccumulatorOf(on.dtype);
  const Case c = {101, 31, 97, 17, Labels::kAll};
  const Inputs in(c);
  for (DType logits_dtype : {on.dtype, accumulator}) {
    const Literal literal(in, on.dtype, logits_dtype);
    const Array lse(on, DType::kFloat64,
                    Compute(on, in, {.logits_dtype = logits_dtype}).lse);
    for (How how : {How::kApart, How::kAtOnce}) {
      Values sums(c.tokens), dx(in.x.size()), dweight;
      Values dx_error = literal.dx_error;
      int64_t first = 0;
      for (int64_t width : {40, 57}) {
        Inputs own = in;
        own.c.vocab = width;
        const auto begin = in.weight.begin() + first * c.hidden;
        own.weight.assign(begin, begin + width * c.hidden);
        int64_t done = 0;
        const auto join = [&](const int32_t*, double* rows_lse, double*,
                              int64_t rows) {
          const Array copy = Array::Poisoned(on, DType::kFloat64, rows);
          CopyBytes(copy.data(), rows_lse, rows * 8, StreamOf(on));
          for (double part_lse : copy.Values())
            sums[done++] += std::exp(part_lse);
          CopyBytes(rows_lse,
                    static_cast<const double*>(lse.data()) + done - rows,
                    rows * 8, StreamOf(on));
        };
        const VocabularyPart part = {first, join};
        const Outputs out =
            Compute(on, own, {how, Want::kBoth, logits_dtype, &part});
        for (size_t i = 0; i < dx.size(); ++i) {
          dx[i] += out.dx[i];
          dx_error[i] += Roundoff(on.dtype) * std::fabs(out.dx[i]);
        }
        dweight.insert(dweight.end(), out.dweight.begin(), out.dweight.end());
        first += width;
      }
      for (double& sum : sums) sum = std::log(sum);
      ExpectNear(sums, literal.lse, literal.lse_error, "lse");
      ExpectNear(dx, literal.dx, dx_error, "dx");
      ExpectNear(dweight, literal.dweight, literal.dweight_error, "dweight");
    }
  }
}

// Of size 10, logits are rounded in bfloat16 by some 2^-8 * 10 / 3 = 1e-2,
// their gradients, which stay bfloat16, by a tenth of what that makes of them.
TEST_P(HeadCrossEntropyTest, WiderLogitsAreMoreExact) {
  Inputs in({300, 64, 1031, 128, Labels::kAll});
  for (double& x : in.x) x *= 4;
  const Outputs wanted = Compute(Oracle(), in);
  const Outputs plain = Compute(backend(), in);
  const Outputs wide =
      Compute(backend(), in, {.logits_dtype = AccumulatorOf(backend().dtype)});
  if (backend().dtype == DType::kFloat32) {
    EXPECT_EQ(wide.dweight, plain.dweight);
    return;
  }
  EXPECT_LT(MaxAbs(wide.lse, wanted.lse), MaxAbs(plain.lse, wanted.lse) / 32);
  EXPECT_LT(RelativeL2(wide.dx, wanted.dx),
            RelativeL2(plain.dx, wanted.dx) / 2);
  EXPECT_LT(RelativeL2(wide.dweight, wanted.dweight),
            RelativeL2(plain.dweight, wanted.dweight) / 2);
}

TEST_P(HeadCrossEntropyTest, NoLabelIsNoLossAndNoGradient) {
  for (float beta : {0.0f, 1.0f}) {
    const Inputs in({9, 8, 13, 4, Labels::kNone, beta});
    const Outputs out = Compute(backend(), in);
    EXPECT_EQ(out.loss, 0);
    EXPECT_EQ(out.dx, Values(9 * 8, 0));
    EXPECT_EQ(out.dweight, beta == 0 ? Values(13 * 8, 0) : in.old_dweight);
  }
}

TEST(HeadCrossEntropy, GradientsAreCentralDifferences) {
  for (const Case& c : std::vector<Case>{{7, 3, 5, 2, Labels::kAll},
                                         {16, 3, 5, 2},
                                         {5, 4, 3, 8, Labels::kAll},
                                         {6, 2, 7, 3, Labels::kSome, 1}}) {
    const Inputs in(c);
    const Outputs out = Compute(Oracle(), in);
    Inputs moved = in;
    EXPECT_LT(GradCheck(
                  [&](const Values& x) {
                    moved.x = x;
                    return Compute(Oracle(), moved).loss * kDloss;
                  },
                  in.x, out.dx),
              1e-8)
        << c;
    moved.x = in.x;
    Values dweight = out.dweight;
    if (c.beta == 1)
      for (size_t i = 0; i < dweight.size(); ++i)
        dweight[i] -= in.old_dweight[i];
    EXPECT_LT(GradCheck(
                  [&](const Values& weight) {
                    moved.weight = weight;
                    return Compute(Oracle(), moved).loss * kDloss;
                  },
                  in.weight, dweight),
              1e-8)
        << c;
  }
}

TEST_P(HeadCrossEntropyTest, LargeLogits) {
  Inputs in({20, 16, 50, 8, Labels::kAll});
  for (double& x : in.x) x *= 256;
  const Literal literal(in, backend().dtype, backend().dtype);
  EXPECT_NEAR(Compute(backend(), in).loss, literal.loss, literal.loss_error);
}

TEST_P(HeadCrossEntropyTest, IsDeterministic) {
  for (const Case& c :
       {Case{300, 64, 1031, 128, Labels::kAll}, Case{67, 128, 1024, 1000}}) {
    const Inputs in(c);
    SetNumThreads(1);
    const Outputs one = Compute(backend(), in);
    for (int threads : {2, 3}) {
      SetNumThreads(threads);
      const Outputs out = Compute(backend(), in);
      EXPECT_EQ(out.loss, one.loss) << c;
      EXPECT_EQ(out.dx, one.dx) << c;
      EXPECT_EQ(out.dweight, one.dweight) << c;
    }
  }
}

}  // namespace
}  // namespace mimo::kernels
