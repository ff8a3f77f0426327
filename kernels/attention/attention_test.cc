#include "kernels/attention/attention.h"

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

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Case {
  int64_t batch, seq_q, seq_k, heads, kv_heads, head_dim;
  bool causal;
  std::vector<int32_t> key_lengths = {};
  int64_t capacity = 0;  // keys that a sample has room for; 0: seq_k
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B " << c.batch << " Sq " << c.seq_q << " Sk " << c.seq_k
             << " N " << c.heads << " G " << c.kv_heads << " D " << c.head_dim
             << (c.causal ? " causal" : " full") << " lengths "
             << testing::PrintToString(c.key_lengths) << " capacity "
             << c.capacity;
}

// Shorter and longer than a tile of 64 queries or 128 keys, and not a multiple.
const std::vector<Case>& SelfAttention() {
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
      {3, 40, 40, 4, 2, 32, false, {0, 7, 40}},
      {3, 140, 140, 2, 1, 16, true, {1, 130, 0}},
  };
  return *cases;
}
const std::vector<Case>& CrossAttention() {
  static const auto* const cases = new std::vector<Case>{
      {2, 5, 0, 2, 1, 8, false},
      {2, 0, 5, 2, 1, 8, false},
      {2, 1, 77, 4, 2, 32, true},
      {2, 3, 131, 4, 2, 16, true},
      {1, 70, 200, 2, 2, 32, true},
      {1, 131, 5, 2, 2, 7, true},  // the first 126 see no key
      {2, 5, 300, 2, 1, 64, false, {129, 300}},
  };
  return *cases;
}
const std::vector<Case>& KvCache() {
  static const auto* const cases = new std::vector<Case>{
      {2, 1, 77, 4, 2, 32, true, {}, 90},
      {3, 9, 140, 2, 1, 16, true, {131, 140, 2}, 141},
  };
  return *cases;
}

// q and kv lie in wider rows, as in a fused projection. What must not be read
// is NaN: room without a key, keys behind a sample's length, gaps in a row.
template <typename T>
struct Problem {
  explicit Problem(const Case& c)
      : c(c),
        capacity(c.capacity != 0 ? c.capacity : c.seq_k),
        q_size(c.batch * c.seq_q * c.heads * c.head_dim),
        q_stride(c.heads * c.head_dim + 3),
        v_column(c.kv_heads * c.head_dim + 1),
        kv_stride(2 * c.kv_heads * c.head_dim + 2),
        q(c.batch * c.seq_q * q_stride, kNan),
        kv(c.batch * capacity * kv_stride, kNan),
        dout(RandomVector<T>(q_size, 4)) {
    const std::vector<T> q_values = RandomVector<T>(q_size, 1, 2);
    for (int64_t i = 0; i < q_size; ++i) q[QIndex(i)] = q_values[i];
    const int64_t row = c.kv_heads * c.head_dim;
    const std::vector<T> k_values =
        RandomVector<T>(c.batch * c.seq_k * row, 2, 2);
    const std::vector<T> v_values = RandomVector<T>(c.batch * c.seq_k * row, 3);
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t j = 0; j < Keys(b); ++j) {
        for (int64_t d = 0; d < row; ++d) {
          T* to = &kv[(b * capacity + j) * kv_stride + d];
          to[0] = k_values[(b * c.seq_k + j) * row + d];
          to[v_column] = v_values[(b * c.seq_k + j) * row + d];
        }
      }
    }
  }

  int64_t Keys(int64_t b) const {
    return c.key_lengths.empty() ? c.seq_k : c.key_lengths[b];
  }
  // Of element i of the packed [B*Sq, N*D].
  int64_t QIndex(int64_t i) const {
    const int64_t row = c.heads * c.head_dim;
    return i / row * q_stride + i % row;
  }
  AttentionShape shape() const {
    return {.batch = c.batch,
            .seq_q = c.seq_q,
            .seq_k = c.seq_k,
            .heads = c.heads,
            .kv_heads = c.kv_heads,
            .head_dim = c.head_dim,
            .causal = c.causal,
            .scale = 1 / std::sqrt(c.head_dim)};
  }
  const int32_t* key_lengths() const {
    return c.key_lengths.empty() ? nullptr : c.key_lengths.data();
  }

  void Forward() {
    out = Poisoned<T>(q_size);
    lse = Poisoned<T>(c.batch * c.heads * c.seq_q);
    AttentionForward(
        {.shape = shape(),
         .q = q.data(),
         .k = kv.data(),
         .v = kv.data() + v_column,
         .q_stride = q_stride,
         .kv_stride = kv_stride,
         .kv_batch_stride = c.capacity == 0 ? 0 : capacity * kv_stride,
         .key_lengths = key_lengths(),
         .out = out.data(),
         .lse = lse.data(),
         .dtype = DTypeOf<T>::value},
        {});
  }
  void Backward() {
    dq = Poisoned<T>(q.size());
    dkv = Poisoned<T>(kv.size());
    AttentionBackward({.shape = shape(),
                       .q = q.data(),
                       .k = kv.data(),
                       .v = kv.data() + v_column,
                       .q_stride = q_stride,
                       .kv_stride = kv_stride,
                       .key_lengths = key_lengths(),
                       .out = out.data(),
                       .lse = lse.data(),
                       .dout = dout.data(),
                       .dq = dq.data(),
                       .dk = dkv.data(),
                       .dv = dkv.data() + v_column,
                       .dq_stride = q_stride,
                       .dkv_stride = kv_stride,
                       .dtype = DTypeOf<T>::value},
                      {});
    // The gaps belong to others: still poison, and 0 for the comparisons.
    TakeGaps(dq, q_stride, c.heads * c.head_dim, -1);
    TakeGaps(dkv, kv_stride, kv_stride - 1, v_column - 1);
  }

  // Columns from `end` on, and `middle`.
  void TakeGaps(std::vector<T>& x, int64_t stride, int64_t end,
                int64_t middle) {
    for (int64_t i = 0; i < x.size(); ++i) {
      if (i % stride < end && i % stride != middle) continue;
      ASSERT_TRUE(std::isnan(x[i])) << c << ": written between the rows";
      x[i] = 0;
    }
  }

  const Case c;
  const int64_t capacity, q_size, q_stride, v_column, kv_stride;
  std::vector<T> q, kv, dout;
  std::vector<T> out, lse, dq, dkv;
};

// The softmax as it is written in a paper, with a matrix of all scores.
void Literal(const Problem<double>& p, std::vector<double>& out,
             std::vector<double>& lse) {
  const Case& c = p.c;
  out.assign(p.q_size, 0);
  lse.assign(c.batch * c.heads * c.seq_q,
             -std::numeric_limits<double>::infinity());
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t n = 0; n < c.heads; ++n) {
      const int64_t g = n * c.kv_heads / c.heads;
      for (int64_t i = 0; i < c.seq_q; ++i) {
        std::vector<double> e(c.seq_k, 0);
        double sum = 0;
        for (int64_t j = 0; j < p.Keys(b); ++j) {
          if (c.causal && j - c.seq_k > i - c.seq_q) continue;
          double dot = 0;
          for (int64_t d = 0; d < c.head_dim; ++d) {
            dot +=
                p.q[(b * c.seq_q + i) * p.q_stride + n * c.head_dim + d] *
                p.kv[(b * p.capacity + j) * p.kv_stride + g * c.head_dim + d];
          }
          sum += e[j] = std::exp(dot / std::sqrt(c.head_dim));
        }
        if (sum == 0) continue;
        lse[(b * c.heads + n) * c.seq_q + i] = std::log(sum);
        for (int64_t j = 0; j < p.Keys(b); ++j) {
          for (int64_t d = 0; d < c.head_dim; ++d) {
            out[((b * c.seq_q + i) * c.heads + n) * c.head_dim + d] +=
                e[j] == 0 ? 0
                          : e[j] / sum *
                                p.kv[(b * p.capacity + j) * p.kv_stride +
                                     p.v_column + g * c.head_dim + d];
          }
        }
      }
    }
  }
}

// max |a - b| over max(1, max |b|); infinities must be the same.
template <typename T>
double Distance(std::vector<T> a, std::vector<double> b) {
  double largest = 1;
  for (size_t i = 0; i < b.size(); ++i) {
    if (std::isinf(b[i]) && a[i] == b[i]) a[i] = b[i] = 0;
    largest = std::max(largest, std::fabs(b[i]));
  }
  return MaxAbs(a, b) / largest;
}

std::vector<Case> AllCases() {
  std::vector<Case> all = SelfAttention();
  for (const auto* more : {&CrossAttention(), &KvCache()})
    all.insert(all.end(), more->begin(), more->end());
  return all;
}
std::vector<Case> TrainingCases() {
  std::vector<Case> all = SelfAttention();
  all.insert(all.end(), CrossAttention().begin(), CrossAttention().end());
  return all;
}

TEST(Attention, Float64ForwardIsTheFormula) {
  for (const Case& c : AllCases()) {
    Problem<double> p(c);
    p.Forward();
    std::vector<double> out, lse;
    Literal(p, out, lse);
    // Sums of up to 300 terms of order one.
    EXPECT_LT(Distance(p.out, out), 1e-13) << c;
    EXPECT_LT(Distance(p.lse, lse), 1e-13) << c;
  }
}

// A score sums D products of up to 4 and is off by sqrt(D) roundings of sums of
// order 2 sqrt(D), times 1/sqrt(D): 2 sqrt(D) epsilon; so is the exponential,
// relatively. Sums over the keys and over the queries add sqrt(S) roundings.
double Tolerance(const Case& c) {
  return 4 * std::numeric_limits<float>::epsilon() *
         (std::sqrt(c.head_dim) + std::sqrt(c.seq_k + c.seq_q));
}

TEST(Attention, Float32ForwardIsFloat64) {
  for (const Case& c : AllCases()) {
    Problem<float> p(c);
    Problem<double> oracle(c);
    p.Forward();
    oracle.Forward();
    EXPECT_LT(Distance(p.out, oracle.out), Tolerance(c)) << c;
    EXPECT_LT(Distance(p.lse, oracle.lse), Tolerance(c)) << c;
  }
}

TEST(Attention, Float32BackwardIsFloat64) {
  for (const Case& c : TrainingCases()) {
    Problem<float> p(c);
    Problem<double> oracle(c);
    p.Forward();
    p.Backward();
    oracle.Forward();
    oracle.Backward();
    EXPECT_LT(Distance(p.dq, oracle.dq), Tolerance(c)) << c;
    EXPECT_LT(Distance(p.dkv, oracle.dkv), Tolerance(c)) << c;
  }
}

TEST(Attention, GradientsAreCentralDifferences) {
  for (const Case& c : std::vector<Case>{
           {2, 4, 4, 4, 2, 3, true},
           {2, 3, 5, 2, 2, 2, true, {4, 5}},
           {3, 5, 3, 3, 1, 2, true},
           {3, 3, 4, 2, 1, 3, false, {0, 1, 3}},
       }) {
    Problem<double> p(c);
    // Hidden keys have a value here: their gradient is 0, not unset.
    for (double& x : p.q) x = std::isnan(x) ? 0.5 : x;
    for (double& x : p.kv) x = std::isnan(x) ? 0.5 : x;
    p.Forward();
    p.Backward();
    Problem<double> moved = p;
    EXPECT_LT(GradCheck(
                  [&](const std::vector<double>& q) {
                    moved.q = q;
                    moved.Forward();
                    return Dot(moved.out, p.dout);
                  },
                  p.q, p.dq),
              1e-8)
        << c;
    moved.q = p.q;
    EXPECT_LT(GradCheck(
                  [&](const std::vector<double>& kv) {
                    moved.kv = kv;
                    moved.Forward();
                    return Dot(moved.out, p.dout);
                  },
                  p.kv, p.dkv),
              1e-8)
        << c;
  }
}

// Scores of hundreds: the exponentials of a naive softmax would overflow, and a
// later tile's maximum makes what came before vanish.
TEST(Attention, LargeScores) {
  Problem<float> p({1, 200, 200, 2, 1, 32, false});
  Problem<double> oracle(p.c);
  for (int64_t i = 0; i < p.q.size(); ++i) {
    p.q[i] *= 100;
    oracle.q[i] = p.q[i];
  }
  p.Forward();
  oracle.Forward();
  // A score of 500 is off by up to 500 sqrt(32) epsilon/2 = 1.7e-4.
  EXPECT_LT(MaxAbs(p.out, oracle.out), 4e-4);
  EXPECT_LT(Distance(p.lse, oracle.lse), 1e-6);
}

template <typename T>
void ExpectSameWhateverTheThreads() {
  const int before = NumThreads();
  for (const Case& c : TrainingCases()) {
    SetNumThreads(1);
    Problem<T> one(c);
    one.Forward();
    one.Backward();
    for (int threads : {2, 3}) {
      SetNumThreads(threads);
      Problem<T> p(c);
      p.Forward();
      p.Backward();
      EXPECT_EQ(p.out, one.out) << c;
      EXPECT_EQ(p.lse, one.lse) << c;
      EXPECT_EQ(p.dq, one.dq) << c;
      EXPECT_EQ(p.dkv, one.dkv) << c;
    }
  }
  SetNumThreads(before);
}

TEST(Attention, SameWhateverTheThreads) {
  ExpectSameWhateverTheThreads<float>();
  ExpectSameWhateverTheThreads<double>();
}

}  // namespace
}  // namespace mimo::kernels
