#include "kernels/loss/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

constexpr double kDloss = 0.375;

class CrossEntropyTest : public BackendTest {};
MIMO_ON_BACKENDS(CrossEntropyTest);

struct Inputs {
  // Logits in [-scale, scale); one label in three is ignored.
  Inputs(int64_t tokens, int64_t vocab, double scale = 4)
      : tokens(tokens),
        vocab(vocab),
        logits(RandomValues(tokens * vocab, 1, scale)) {
    std::mt19937 bits(2);
    for (int64_t t = 0; t < tokens; ++t)
      labels.push_back(t % 3 == 1 ? -100 : static_cast<int>(bits() % vocab));
  }
  int64_t tokens, vocab;
  Values logits, labels;
};

struct Outputs {
  Values lse, loss, dlogits;
};

Outputs Apart(const Backend& on, const Inputs& in) {
  const Array logits(on, in.logits), labels(on, DType::kInt32, in.labels);
  const Array lse = Array::Poisoned(on, DType::kFloat64, in.tokens);
  const Array loss = Array::Poisoned(on, DType::kFloat64, in.tokens);
  const Array dloss(on, DType::kFloat64, {kDloss});
  CrossEntropyForward({.logits = logits.data(),
                       .labels = static_cast<const int32_t*>(labels.data()),
                       .lse = static_cast<double*>(lse.data()),
                       .loss = static_cast<double*>(loss.data()),
                       .tokens = in.tokens,
                       .vocab = in.vocab,
                       .dtype = on.dtype},
                      StreamOf(on));
  EXPECT_EQ(logits.Values(), in.logits) << "the forward changed its input";
  CrossEntropyBackward({.logits = logits.data(),
                        .dlogits = logits.data(),
                        .labels = static_cast<const int32_t*>(labels.data()),
                        .lse = static_cast<double*>(lse.data()),
                        .dloss = static_cast<const double*>(dloss.data()),
                        .tokens = in.tokens,
                        .vocab = in.vocab,
                        .dtype = on.dtype,
                        .dlogits_dtype = on.dtype},
                       StreamOf(on));
  return {lse.Values(), loss.Values(), logits.Values()};
}

Outputs AtOnce(const Backend& on, const Inputs& in) {
  const Array logits(on, in.logits), labels(on, DType::kInt32, in.labels);
  const Array loss = Array::Poisoned(on, DType::kFloat64, in.tokens);
  const Array dloss(on, DType::kFloat64, {kDloss});
  CrossEntropyForwardBackward(
      {.logits = logits.data(),
       .dlogits = logits.data(),
       .labels = static_cast<const int32_t*>(labels.data()),
       .loss = static_cast<double*>(loss.data()),
       .dloss = static_cast<const double*>(dloss.data()),
       .tokens = in.tokens,
       .vocab = in.vocab,
       .dtype = on.dtype,
       .dlogits_dtype = on.dtype},
      StreamOf(on));
  return {{}, loss.Values(), logits.Values()};
}

// The vocabulary cut into these parts, each with its own logits.
Outputs InParts(const Backend& on, const Inputs& in,
                const std::vector<int64_t>& widths) {
  const Array labels(on, DType::kInt32, in.labels);
  const int32_t* label = static_cast<const int32_t*>(labels.data());
  const Array dloss(on, DType::kFloat64, {kDloss});
  std::vector<Array> logits;
  Values part_lse, part_loss;
  int64_t first = 0;
  for (int64_t width : widths) {
    Values part;
    for (int64_t t = 0; t < in.tokens; ++t) {
      const auto from = in.logits.begin() + t * in.vocab + first;
      part.insert(part.end(), from, from + width);
    }
    logits.emplace_back(on, part);
    const Array lse = Array::Poisoned(on, DType::kFloat64, in.tokens);
    const Array loss = Array::Poisoned(on, DType::kFloat64, in.tokens);
    CrossEntropyForward({.logits = logits.back().data(),
                         .labels = label,
                         .lse = static_cast<double*>(lse.data()),
                         .loss = static_cast<double*>(loss.data()),
                         .tokens = in.tokens,
                         .vocab = width,
                         .first = first,
                         .part = true,
                         .dtype = on.dtype},
                        StreamOf(on));
    const Values l = lse.Values(), s = loss.Values();
    part_lse.insert(part_lse.end(), l.begin(), l.end());
    part_loss.insert(part_loss.end(), s.begin(), s.end());
    first += width;
  }
  const Array lses(on, DType::kFloat64, part_lse);
  const Array losses(on, DType::kFloat64, part_loss);
  const Array lse = Array::Poisoned(on, DType::kFloat64, in.tokens);
  const Array loss = Array::Poisoned(on, DType::kFloat64, in.tokens);
  CrossEntropyJoin({.part_lse = static_cast<const double*>(lses.data()),
                    .part_loss = static_cast<const double*>(losses.data()),
                    .labels = label,
                    .lse = static_cast<double*>(lse.data()),
                    .loss = static_cast<double*>(loss.data()),
                    .parts = static_cast<int64_t>(widths.size()),
                    .tokens = in.tokens},
                   StreamOf(on));
  Outputs out = {lse.Values(), loss.Values(), Values(in.logits.size())};
  first = 0;
  for (size_t p = 0; p < widths.size(); ++p) {
    CrossEntropyBackward({.logits = logits[p].data(),
                          .dlogits = logits[p].data(),
                          .labels = label,
                          .lse = static_cast<double*>(lse.data()),
                          .dloss = static_cast<const double*>(dloss.data()),
                          .tokens = in.tokens,
                          .vocab = widths[p],
                          .first = first,
                          .part = true,
                          .dtype = on.dtype,
                          .dlogits_dtype = on.dtype},
                         StreamOf(on));
    const Values part = logits[p].Values();
    for (int64_t t = 0; t < in.tokens; ++t)
      std::copy_n(part.begin() + t * widths[p], widths[p],
                  out.dlogits.begin() + t * in.vocab + first);
    first += widths[p];
  }
  return out;
}

// A sum of positive terms over a row is cut into at least 512 / 8 lanes: with
// V <= 32064 an addition chain is below 512 and errs by less than 512 / 2
// roundings of 2^-24 on average the one way or the other, 1.5e-5 in the log. An
// exponential adds 2 ulp, its argument (at most 2 scale log2(e) in size, where
// the term matters some 20) 20 * 2^-24: 2e-6. Gradients take lse
// rounded; one in bfloat16 is rounded once, by 2^-8.
void ExpectIsTheFormula(const Outputs& out, const Inputs& in, DType dtype) {
  const bool exact = dtype == DType::kFloat64;
  const double u = exact ? 0x1p-53 : 0x1p-24;
  const double rounding = dtype == DType::kBFloat16 ? 0x1p-8 : 0;
  for (int64_t t = 0; t < in.tokens; ++t) {
    const double* z = in.logits.data() + t * in.vocab;
    const double* d = out.dlogits.data() + t * in.vocab;
    if (in.labels[t] < 0) {
      EXPECT_EQ(out.loss[t], 0);
      if (!out.lse.empty()) {
        EXPECT_TRUE(std::isnan(out.lse[t])) << "written";
      }
      for (int64_t v = 0; v < in.vocab; ++v) ASSERT_EQ(d[v], 0);
      continue;
    }
    double sum = 0;
    for (int64_t v = 0; v < in.vocab; ++v) sum += std::exp(z[v]);
    const double lse = std::log(sum);
    const int64_t label = static_cast<int64_t>(in.labels[t]);
    const double error = exact ? 1e-12 : 2e-5;
    if (!out.lse.empty()) {
      EXPECT_NEAR(out.lse[t], lse, error);
    }
    EXPECT_NEAR(out.loss[t], lse - z[label], error);
    for (int64_t v = 0; v < in.vocab; ++v) {
      const double p = std::exp(z[v] - lse);
      const double gradient = kDloss * (p - (v == label ? 1 : 0));
      // Of the label, p - 1 is rounded where it is formed.
      const double off = 2 * (error + u * std::fabs(lse)) * kDloss * p +
                         rounding * std::fabs(gradient) +
                         (v == label ? 2 * u * kDloss : 0) + 1e-30;
      ASSERT_NEAR(d[v], gradient, off)
          << "row " << t << " of " << in.tokens << ", column " << v << " of "
          << in.vocab;
    }
  }
}

TEST_P(CrossEntropyTest, IsTheFormula) {
  for (auto [tokens, vocab] : {std::pair<int64_t, int64_t>{1, 1},
                               {0, 5},
                               {7, 3},
                               {17, 13},
                               {5, 1031},
                               {3, 4096},
                               {4, 8200},
                               {2, 32064}}) {
    for (double scale : {4, 32, 512}) {
      const Inputs in(tokens, vocab, scale);
      for (const Backend& on : {backend(), Oracle()}) {
        ExpectIsTheFormula(Apart(on, in), in, on.dtype);
        ExpectIsTheFormula(AtOnce(on, in), in, on.dtype);
      }
    }
  }
}

TEST_P(CrossEntropyTest, PartsOfTheVocabularyMakeTheWhole) {
  for (auto [tokens, widths] :
       {std::pair<int64_t, std::vector<int64_t>>{9, {1, 4}},
        {0, {3, 2}},
        {17, {7, 6, 8}},
        {5, {1031}},
        {4, {4100, 4096, 3, 1}}}) {
    for (double scale : {4, 32, 512}) {
      int64_t vocab = 0;
      for (int64_t width : widths) vocab += width;
      const Inputs in(tokens, vocab, scale);
      for (const Backend& on : {backend(), Oracle()})
        ExpectIsTheFormula(InParts(on, in, widths), in, on.dtype);
    }
  }
}

// The logits stay; a GPU's gradients may be bfloat16, rounded once.
TEST_P(CrossEntropyTest, GradientsBesideTheLogits) {
  const Backend on = backend();
  const DType narrow = on.device == Device::kCpu ? on.dtype : DType::kBFloat16;
  for (auto [tokens, vocab] :
       {std::pair<int64_t, int64_t>{7, 3}, {5, 1031}, {4, 8200}}) {
    const Inputs in(tokens, vocab);
    const Outputs wanted = Apart(on, in);
    const Values rounded = Array(on, narrow, wanted.dlogits).Values();
    const Array logits(on, in.logits), labels(on, DType::kInt32, in.labels);
    const Array lse(on, DType::kFloat64, wanted.lse);
    const Array loss = Array::Poisoned(on, DType::kFloat64, tokens);
    const Array dloss(on, DType::kFloat64, {kDloss});
    const Array apart = Array::Poisoned(on, narrow, tokens * vocab);
    const Array at_once = Array::Poisoned(on, narrow, tokens * vocab);
    CrossEntropyBackward({.logits = logits.data(),
                          .dlogits = apart.data(),
                          .labels = static_cast<const int32_t*>(labels.data()),
                          .lse = static_cast<double*>(lse.data()),
                          .dloss = static_cast<const double*>(dloss.data()),
                          .tokens = tokens,
                          .vocab = vocab,
                          .dtype = on.dtype,
                          .dlogits_dtype = narrow},
                         StreamOf(on));
    CrossEntropyForwardBackward(
        {.logits = logits.data(),
         .dlogits = at_once.data(),
         .labels = static_cast<const int32_t*>(labels.data()),
         .loss = static_cast<double*>(loss.data()),
         .dloss = static_cast<const double*>(dloss.data()),
         .tokens = tokens,
         .vocab = vocab,
         .dtype = on.dtype,
         .dlogits_dtype = narrow},
        StreamOf(on));
    EXPECT_EQ(apart.Values(), rounded);
    EXPECT_EQ(at_once.Values(), rounded);
    EXPECT_EQ(loss.Values(), wanted.loss);
    EXPECT_EQ(logits.Values(), in.logits);
  }
}

TEST_P(CrossEntropyTest, NanAndInfinityShow) {
  for (double bad : {std::numeric_limits<double>::quiet_NaN(),
                     std::numeric_limits<double>::infinity()}) {
    for (int64_t where : {0, 700, 1030}) {
      Inputs in(1, 1031);
      in.logits[where] = bad;
      EXPECT_FALSE(std::isfinite(AtOnce(backend(), in).loss[0]));
    }
  }
}

TEST_P(CrossEntropyTest, IsDeterministic) {
  const Inputs in(37, 1031);
  SetNumThreads(1);
  const Outputs one = AtOnce(backend(), in);
  SetNumThreads(3);
  EXPECT_EQ(AtOnce(backend(), in).dlogits, one.dlogits);
  EXPECT_EQ(AtOnce(backend(), in).loss, one.loss);
}

}  // namespace
}  // namespace mimo::kernels
