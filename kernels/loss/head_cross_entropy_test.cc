#include "kernels/loss/head_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

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
      {64, 16, 31, 16, Labels::kAll},
      {101, 31, 97, 17},
      {101, 31, 97, 17, Labels::kSome, 1},
      {300, 64, 1031, 128},
      {67, 128, 1024, 1000, Labels::kAll, 1},
  };
  return *cases;
}

template <typename T>
struct Problem {
  explicit Problem(const Case& c)
      : c(c),
        x(RandomVector<T>(c.tokens * c.hidden, 1)),
        weight(RandomVector<T>(c.vocab * c.hidden, 2)),
        labels(c.tokens),
        before(c.beta == 0 ? Poisoned<T>(c.vocab * c.hidden)
                           : RandomVector<T>(c.vocab * c.hidden, 3)) {
    std::mt19937 bits(4);
    for (int64_t t = 0; t < c.tokens; ++t) {
      const int32_t label = bits() % c.vocab;
      const bool ignored = c.labels == Labels::kNone ||
                           (c.labels == Labels::kSome && bits() % 3 != 0);
      labels[t] = ignored ? (t % 2 == 0 ? -100 : -1) : label;
      if (!ignored) continue;
      // Not read: ignored rows enter no product.
      for (int64_t h = 0; h < c.hidden; ++h)
        x[t * c.hidden + h] = std::numeric_limits<T>::quiet_NaN();
    }
  }

  std::vector<char> Workspace() const {
    // All ones is a NaN.
    return std::vector<char>(HeadCrossEntropyWorkspaceBytes(
                                 c.chunk, c.hidden, c.vocab, DTypeOf<T>::value),
                             -1);
  }
  void Forward() {
    std::vector<char> workspace = Workspace();
    loss = std::numeric_limits<double>::quiet_NaN();
    lse = Poisoned<T>(c.tokens);
    HeadCrossEntropyForward({.x = x.data(),
                             .weight = weight.data(),
                             .labels = labels.data(),
                             .loss = &loss,
                             .lse = lse.data(),
                             .workspace = workspace.data(),
                             .tokens = c.tokens,
                             .hidden = c.hidden,
                             .vocab = c.vocab,
                             .chunk = c.chunk,
                             .dtype = DTypeOf<T>::value},
                            {});
  }
  void Backward(bool want_dx = true, bool want_dweight = true) {
    std::vector<char> workspace = Workspace();
    dx = Poisoned<T>(want_dx ? x.size() : 0);
    dweight = want_dweight ? before : std::vector<T>();
    HeadCrossEntropyBackward(
        {.x = x.data(),
         .weight = weight.data(),
         .labels = labels.data(),
         .lse = lse.data(),
         .dloss = &kDloss,
         .dx = want_dx ? dx.data() : nullptr,
         .dweight = want_dweight ? dweight.data() : nullptr,
         .dweight_beta = c.beta,
         .workspace = workspace.data(),
         .tokens = c.tokens,
         .hidden = c.hidden,
         .vocab = c.vocab,
         .chunk = c.chunk,
         .dtype = DTypeOf<T>::value},
        {});
  }

  static constexpr double kDloss = 0.375;
  const Case c;
  std::vector<T> x, weight;
  std::vector<int32_t> labels;
  std::vector<T> before;  // dweight's
  double loss;
  std::vector<T> lse, dx, dweight;
};

// -log of the label's softmax, token by token.
double LiteralLoss(const Problem<double>& p) {
  double loss = 0;
  for (int64_t t = 0; t < p.c.tokens; ++t) {
    if (p.labels[t] < 0) continue;
    double sum = 0, of_label = 0;
    for (int64_t v = 0; v < p.c.vocab; ++v) {
      double logit = 0;
      for (int64_t h = 0; h < p.c.hidden; ++h)
        logit += p.x[t * p.c.hidden + h] * p.weight[v * p.c.hidden + h];
      sum += std::exp(logit);
      if (v == p.labels[t]) of_label = std::exp(logit);
    }
    loss -= std::log(of_label / sum);
  }
  return loss;
}

// max |a - b| over max(1, max |b|), where both may be unset.
template <typename T>
double Distance(const std::vector<T>& a, const std::vector<double>& b) {
  double largest = 1;
  for (double x : b) largest = std::max(largest, std::fabs(x));
  return MaxAbs(a, b) / largest;
}

TEST(HeadCrossEntropy, Float64LossIsTheFormula) {
  for (const Case& c : Cases()) {
    Problem<double> p(c);
    p.Forward();
    const double loss = LiteralLoss(p);
    // Some hundred terms of order 10.
    EXPECT_NEAR(p.loss, loss, 1e-12 * std::max(1.0, loss)) << c;
  }
}

TEST(HeadCrossEntropy, NoLabelIsNoLossAndNoGradient) {
  for (float beta : {0.0f, 1.0f}) {
    Problem<float> p({9, 8, 13, 4, Labels::kNone, beta});
    p.Forward();
    p.Backward();
    EXPECT_EQ(p.loss, 0);
    EXPECT_EQ(p.dx, std::vector<float>(9 * 8, 0.0f));
    EXPECT_EQ(p.dweight,
              beta == 0 ? std::vector<float>(13 * 8, 0.0f) : p.before);
  }
}

TEST(HeadCrossEntropy, Float32IsFloat64) {
  for (const Case& c : Cases()) {
    Problem<float> p(c);
    Problem<double> oracle(c);
    p.Forward();
    oracle.Forward();
    // A logit sums H products of up to 1: sqrt(H) roundings of a sum of order
    // sqrt(H)/3, which a softmax passes on relatively; dx sums over V, dweight
    // over T of these.
    const double epsilon = std::numeric_limits<float>::epsilon();
    const double logit = epsilon * c.hidden;
    EXPECT_NEAR(p.loss, oracle.loss, (1 + c.tokens) * logit) << c;
    for (int64_t t = 0; t < c.tokens; ++t) {
      if (c.labels == Labels::kNone || p.labels[t] < 0) {
        EXPECT_TRUE(std::isnan(p.lse[t])) << c << ": lse of an ignored token";
      } else {
        EXPECT_NEAR(p.lse[t], oracle.lse[t], logit + 8 * epsilon) << c;
      }
    }
    p.Backward();
    oracle.Backward();
    const double sums = epsilon * std::sqrt(c.vocab + c.tokens);
    EXPECT_LT(Distance(p.dx, oracle.dx), logit + sums) << c;
    EXPECT_LT(Distance(p.dweight, oracle.dweight), logit + sums) << c;
    for (int64_t t = 0; t < c.tokens; ++t) {
      if (p.labels[t] >= 0) continue;
      for (int64_t h = 0; h < c.hidden; ++h)
        ASSERT_EQ(p.dx[t * c.hidden + h], 0) << c;
    }
    // Each gradient alone is the same.
    Problem<float> alone = p;
    alone.Backward(true, false);
    EXPECT_EQ(alone.dx, p.dx) << c;
    alone.Backward(false, true);
    EXPECT_EQ(alone.dweight, p.dweight) << c;
  }
}

TEST(HeadCrossEntropy, GradientsAreCentralDifferences) {
  for (const Case& c : std::vector<Case>{{7, 3, 5, 2, Labels::kAll},
                                         {16, 3, 5, 2},
                                         {5, 4, 3, 8, Labels::kAll},
                                         {6, 2, 7, 3, Labels::kSome, 1}}) {
    Problem<double> p(c);
    for (double& x : p.x) x = std::isnan(x) ? 0.5 : x;
    p.Forward();
    p.Backward();
    Problem<double> moved = p;
    EXPECT_LT(GradCheck(
                  [&](const std::vector<double>& x) {
                    moved.x = x;
                    moved.Forward();
                    return moved.loss * p.kDloss;
                  },
                  p.x, p.dx),
              1e-8)
        << c;
    moved.x = p.x;
    std::vector<double> dweight = p.dweight;
    if (c.beta == 1)
      for (int64_t i = 0; i < dweight.size(); ++i) dweight[i] -= p.before[i];
    EXPECT_LT(GradCheck(
                  [&](const std::vector<double>& weight) {
                    moved.weight = weight;
                    moved.Forward();
                    return moved.loss * p.kDloss;
                  },
                  p.weight, dweight),
              1e-8)
        << c;
  }
}

TEST(HeadCrossEntropy, LargeLogits) {
  Problem<float> p({20, 16, 50, 8, Labels::kAll});
  Problem<double> oracle(p.c);
  for (int64_t i = 0; i < p.x.size(); ++i) oracle.x[i] = p.x[i] *= 200;
  p.Forward();
  oracle.Forward();
  // Logits of up to 3200 are off by some epsilon of that, a token.
  EXPECT_NEAR(p.loss, oracle.loss, 20 * 4 * 3200 * 1.2e-7);
}

template <typename T>
void ExpectSameWhateverTheThreads() {
  const int before = NumThreads();
  for (const Case& c :
       {Case{300, 64, 1031, 128, Labels::kAll}, Case{67, 128, 1024, 1000}}) {
    SetNumThreads(1);
    Problem<T> one(c);
    one.Forward();
    one.Backward();
    for (int threads : {2, 3}) {
      SetNumThreads(threads);
      Problem<T> p(c);
      p.Forward();
      p.Backward();
      EXPECT_EQ(p.loss, one.loss) << c;
      EXPECT_EQ(p.dx, one.dx) << c;
      EXPECT_EQ(p.dweight, one.dweight) << c;
    }
  }
  SetNumThreads(before);
}

TEST(HeadCrossEntropy, SameWhateverTheThreads) {
  ExpectSameWhateverTheThreads<float>();
  ExpectSameWhateverTheThreads<double>();
}

}  // namespace
}  // namespace mimo::kernels
