#include "kernels/attention/attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/attention/attention_problem.h"
#include "kernels/base/parallel.h"
#include "kernels/rotary/rotary.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

class AttentionTest : public BackendTest {};
MIMO_ON_BACKENDS(AttentionTest);

// Shorter and longer than a tile of 64 queries or 128 keys, and not a multiple.
const std::vector<Case>& Cases() {
  static const auto* const cases = new std::vector<Case>{
      {0, 4, 4, 2, 1, 8, true},
      {2, 0, 0, 2, 1, 8, true},
      {1, 1, 1, 1, 1, 1, false},
      {1, 1, 1, 1, 1, 1, true},
      {2, 17, 17, 4, 4, 32, false},
      {2, 64, 64, 4, 2, 32, true},
      {2, 71, 71, 4, 4, 32, true},
      {1, 128, 128, 2, 2, 16, false},
      {1, 65, 65, 2, 1, 80, true},
      {1, 131, 131, 6, 2, 7, true},
      {1, 193, 193, 3, 1, 64, true},
      {1, 257, 257, 2, 1, 128, false},
      {1, 70, 70, 2, 1, 256, true},
      {3, 40, 40, 4, 2, 32, false, {0, 7, 40}},
      {3, 140, 140, 2, 1, 16, true, {1, 130, 0}},
      // Other numbers of queries than of keys.
      {2, 5, 0, 2, 1, 8, false},
      {2, 0, 5, 2, 1, 8, false},
      {2, 1, 77, 4, 2, 32, true},
      {2, 3, 131, 4, 2, 16, true},
      {1, 70, 200, 2, 2, 32, true},
      {1, 131, 5, 2, 2, 7, true},  // the first 126 see no key
      {2, 5, 300, 2, 1, 64, false, {129, 300}},
      // A KV cache.
      {2, 1, 77, 4, 2, 32, true, {}, 90},
      {3, 9, 140, 2, 1, 16, true, {131, 140, 2}, 141},
      // Packed.
      {1, 70, 70, 2, 1, 16, true, {}, 0, {0, 70}},
      {4, 131, 131, 4, 2, 32, true, {}, 0, {0, 5, 5, 136, 200}},
      {3, 66, 66, 2, 2, 7, false, {}, 0, {0, 64, 130, 131}},
      // Rows of which a GPU reads 16 bytes at once.
      {2, 71, 71, 4, 2, 64, true, {}, 0, {}, 8},
      {1, 200, 200, 2, 1, 128, true, {}, 0, {}, 8},
      {2, 71, 71, 4, 2, 128, false, {40, 71}, 0, {}, 8},
      {3, 131, 131, 4, 2, 128, true, {}, 0, {0, 131, 140, 200}, 8},
  };
  return *cases;
}

TEST_P(AttentionTest, IsNearFloat64) {
  for (const Case& c : Cases()) {
    const Problem p(c);
    ExpectNear(backend(), p, Compute(backend(), p), Compute(Oracle(), p));
  }
}

TEST_P(AttentionTest, SameAgain) {
  for (const Case& c : Cases()) {
    const Problem p(c);
    const Outputs one = Compute(backend(), p), two = Compute(backend(), p);
    EXPECT_EQ(one.out, two.out) << c;
    EXPECT_EQ(one.lse, two.lse) << c;
    EXPECT_EQ(one.dq, two.dq) << c;
    EXPECT_EQ(one.dkv, two.dkv) << c;
  }
}

// dq and dk are those of the op alone, turned back afterwards.
TEST_P(AttentionTest, TurnsBackThroughARotaryEmbedding) {
  int cases = 0;
  for (const Case& c : Cases()) {
    if (c.seq_q != c.seq_k || c.head_dim % 2 != 0 || c.capacity != 0 ||
        !c.cu_seqlens.empty()) {
      continue;
    }
    ++cases;
    const Problem p(c);
    Values cos(c.seq_q * c.head_dim / 2), sin = cos;
    RotaryTable(cos.data(), sin.data(), c.seq_q, c.head_dim, 100,
                DType::kFloat64);
    const auto compute = [&](const Backend& on, bool fused) {
      const DType statistic = AccumulatorOf(on.dtype);
      const Array cos_on(on, statistic, cos), sin_on(on, statistic, sin);
      const auto turn = [&](void* x, int64_t heads, int64_t stride) {
        Rotary({.x = x,
                .cos = cos_on.data(),
                .sin = sin_on.data(),
                .seq = c.seq_q,
                .tokens = c.batch * c.seq_q,
                .heads = heads,
                .head_dim = c.head_dim,
                .stride = stride,
                .max_position = c.seq_q,
                .inverse = true,
                .dtype = on.dtype},
               StreamOf(on));
      };
      Functions f;
      f.backward = [&](const AttentionBackwardArgs& args, Stream stream) {
        AttentionBackwardArgs turned = args;
        if (fused) {
          turned.cos = cos_on.data();
          turned.sin = sin_on.data();
        }
        AttentionBackward(turned, stream);
        if (fused) return;
        turn(args.dq, c.heads, args.dq_stride);
        turn(args.dk, c.kv_heads, args.dkv_stride);
      };
      return Compute(on, p, f);
    };
    const Outputs got = compute(backend(), true);
    ExpectNear(backend(), p, got, compute(Oracle(), false));
    const Outputs apart = compute(backend(), false);
    // The same sums of two products, each rounded once.
    for (Values Outputs::*x : {&Outputs::dq, &Outputs::dkv}) {
      const double largest = MaxAbs(apart.*x, Values((apart.*x).size()));
      EXPECT_LE(MaxAbs(got.*x, apart.*x),
                2 * Roundoff(backend().dtype) * largest)
          << c;
    }
  }
  EXPECT_GT(cases, 8);
}

// Scores of hundreds: the exponentials of a naive softmax would overflow, and a
// later tile's maximum makes what came before vanish.
TEST_P(AttentionTest, LargeScores) {
  Problem p({1, 200, 200, 2, 1, 32, false});
  for (double& q : p.q) q *= 64;
  const Outputs got = Compute(backend(), p), oracle = Compute(Oracle(), p);
  // A score of 400 is off by up to 400 sqrt(32) 2^-24 = 1.4e-4, and so is out,
  // of order one; in bfloat16 p and out are rounded.
  const double rounded =
      backend().dtype == DType::kBFloat16 ? 2 * Roundoff(backend().dtype) : 0;
  EXPECT_LT(MaxAbs(got.out, oracle.out), 4e-4 + rounded);
  EXPECT_LT(MaxAbs(got.lse, oracle.lse), 4e-4);
}

// The softmax as it is written in a paper, with a row of all scores.
void Literal(const Problem& p, Values& out, Values& lse) {
  const Case& c = p.c;
  out.assign(p.dout.size(), 0);
  lse.assign(c.batch * c.heads * c.seq_q,
             -std::numeric_limits<double>::infinity());
  for (int64_t b = 0; b < c.batch; ++b) {
    const bool packed = !c.cu_seqlens.empty();
    const int64_t row = packed ? c.cu_seqlens[b] : b * c.seq_q;
    const int64_t key = packed ? row : b * p.capacity;
    const int64_t rows = packed ? c.cu_seqlens[b + 1] - row : c.seq_q;
    int64_t keys = packed ? rows : c.seq_k;
    if (!c.key_lengths.empty()) keys = c.key_lengths[b];
    for (int64_t n = 0; n < c.heads; ++n) {
      const int64_t g = n * c.kv_heads / c.heads;
      for (int64_t i = 0; i < c.seq_q; ++i) {
        double& row_lse = lse[(b * c.heads + n) * c.seq_q + i];
        if (i >= rows) {
          row_lse = 0;
          continue;
        }
        Values e(keys, 0);
        double sum = 0;
        for (int64_t j = 0; j < keys; ++j) {
          if (c.causal && !packed && j - c.seq_k > i - c.seq_q) continue;
          if (c.causal && packed && j > i) continue;
          double dot = 0;
          for (int64_t d = 0; d < c.head_dim; ++d) {
            dot += p.q[(row + i) * p.q_stride + n * c.head_dim + d] *
                   p.kv[(key + j) * p.kv_stride + g * c.head_dim + d];
          }
          sum += e[j] = std::exp(dot / std::sqrt(c.head_dim));
        }
        if (sum == 0) continue;
        row_lse = std::log(sum);
        for (int64_t j = 0; j < keys; ++j) {
          for (int64_t d = 0; d < c.head_dim; ++d) {
            out[((row + i) * c.heads + n) * c.head_dim + d] +=
                e[j] / sum *
                p.kv[(key + j) * p.kv_stride + p.v_column + g * c.head_dim + d];
          }
        }
      }
    }
  }
}

TEST(Attention, Float64ForwardIsTheFormula) {
  for (const Case& c : Cases()) {
    const Problem p(c);
    const Outputs got = Compute(Oracle(), p);
    Values out, lse;
    Literal(p, out, lse);
    // Sums of up to 300 terms of order one.
    EXPECT_LT(MaxAbs(got.out, out), 1e-13) << c;
    for (size_t i = 0; i < lse.size(); ++i) {
      if (std::isinf(lse[i])) {
        EXPECT_EQ(got.lse[i], lse[i]) << c;
      } else {
        EXPECT_NEAR(got.lse[i], lse[i], 1e-13) << c;
      }
    }
  }
}

TEST(Attention, GradientsAreCentralDifferences) {
  for (const Case& c : std::vector<Case>{
           {2, 4, 4, 4, 2, 3, true},
           {2, 3, 5, 2, 2, 2, true, {4, 5}},
           {3, 5, 3, 3, 1, 2, true},
           {3, 3, 4, 2, 1, 3, false, {0, 1, 3}},
           {3, 4, 4, 2, 1, 3, true, {}, 0, {0, 2, 2, 6}},
       }) {
    const Problem p(c);
    const Outputs at = Compute(Oracle(), p);
    Problem moved = p;
    const auto loss = [&](Values Problem::*x) {
      return [&, x](const Values& values) {
        for (int64_t i = 0; i < values.size(); ++i) {
          if (!std::isnan((p.*x)[i])) (moved.*x)[i] = values[i];
        }
        return Dot(Compute(Oracle(), moved).out, p.dout);
      };
    };
    // A gap's value does not matter, and its gradient is 0.
    const auto without_gaps = [](Values x) {
      for (double& value : x) value = std::isnan(value) ? 0 : value;
      return x;
    };
    EXPECT_LT(GradCheck(loss(&Problem::q), without_gaps(p.q), at.dq), 1e-8)
        << c;
    moved = p;
    EXPECT_LT(GradCheck(loss(&Problem::kv), without_gaps(p.kv), at.dkv), 1e-8)
        << c;
  }
}

TEST(Attention, SameWhateverTheThreads) {
  const int before = NumThreads();
  for (const Backend& on : {Oracle(), Backend{Device::kCpu, DType::kFloat32}}) {
    for (const Case& c : Cases()) {
      const Problem p(c);
      SetNumThreads(1);
      const Outputs one = Compute(on, p);
      for (int threads : {2, 3}) {
        SetNumThreads(threads);
        const Outputs got = Compute(on, p);
        EXPECT_EQ(got.out, one.out) << c;
        EXPECT_EQ(got.lse, one.lse) << c;
        EXPECT_EQ(got.dq, one.dq) << c;
        EXPECT_EQ(got.dkv, one.dkv) << c;
      }
    }
  }
  SetNumThreads(before);
}

}  // namespace
}  // namespace mimo::kernels
