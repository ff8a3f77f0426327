#include "kernels/attention/attention_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kHidden = 128;

// Null for an empty list.
const int32_t* Data(const std::vector<int32_t>& list, const Array& array) {
  return list.empty() ? nullptr : static_cast<const int32_t*>(array.data());
}

template <typename InGap>
void TakeGaps(const Problem& p, InGap&& in_gap, Values& x) {
  for (int64_t i = 0; i < x.size(); ++i) {
    if (!in_gap(i)) continue;
    ASSERT_TRUE(std::isnan(x[i])) << p.c << ": written between the rows";
    x[i] = 0;
  }
}

// max |a - b| over max(1, max |b|); infinities must be the same.
double Distance(Values a, Values b) {
  double largest = 1;
  for (size_t i = 0; i < b.size(); ++i) {
    if (std::isinf(b[i]) && a[i] == b[i]) a[i] = b[i] = 0;
    largest = std::max(largest, std::fabs(b[i]));
  }
  return MaxAbs(a, b) / largest;
}

// |a - b| over sqrt(1 + |b|^2) in L2.
double DistanceL2(const Values& a, const Values& b) {
  double difference = 0, norm = 1;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "B " << c.batch << " Sq " << c.seq_q << " Sk " << c.seq_k
             << " N " << c.heads << " G " << c.kv_heads << " D " << c.head_dim
             << (c.causal ? " causal" : " full") << " lengths "
             << testing::PrintToString(c.key_lengths) << " capacity "
             << c.capacity << " packed " << testing::PrintToString(c.cu_seqlens)
             << " gap " << c.gap;
}

Problem::Problem(const Case& c)
    : c(c),
      rows_q(c.cu_seqlens.empty() ? c.batch * c.seq_q : c.cu_seqlens.back()),
      capacity(c.capacity != 0 ? c.capacity : c.seq_k),
      rows_k(c.cu_seqlens.empty() ? c.batch * capacity : rows_q),
      q_stride(c.heads * c.head_dim + c.gap),
      v_column(c.kv_heads * c.head_dim + c.gap),
      kv_stride(2 * v_column),
      q(RandomValues(rows_q * q_stride, 1, 2)),
      kv(RandomValues(rows_k * kv_stride, 2, 2)),
      dout(RandomValues(rows_q * c.heads * c.head_dim, 3)) {
  for (int64_t i = 0; i < q.size(); ++i) {
    if (InQGap(i)) q[i] = kNan;
  }
  for (int64_t i = 0; i < kv.size(); ++i) {
    if (i % kv_stride >= v_column) kv[i] /= 2;
    if (InKvGap(i)) kv[i] = kNan;
    if (!c.cu_seqlens.empty()) continue;
    const int64_t j = i / kv_stride % capacity, b = i / kv_stride / capacity;
    if (j >= c.seq_k) {
      kv[i] = kNan;
    } else if (!c.key_lengths.empty() && j >= c.key_lengths[b] && !InKvGap(i)) {
      kv[i] = kHidden;
    }
  }
}

AttentionShape Problem::Shape() const {
  return {.batch = c.batch,
          .seq_q = c.seq_q,
          .seq_k = c.seq_k,
          .heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .causal = c.causal,
          .scale = 1 / std::sqrt(c.head_dim)};
}

Outputs Compute(const Backend& on, const Problem& p, const Functions& f) {
  const Case& c = p.c;
  const Array q(on, p.q), kv(on, p.kv), dout(on, p.dout);
  const Array key_lengths(on, DType::kInt32,
                          Values(c.key_lengths.begin(), c.key_lengths.end()));
  const Array cu_seqlens(on, DType::kInt32,
                         Values(c.cu_seqlens.begin(), c.cu_seqlens.end()));
  const Array out = Array::Poisoned(on, p.dout.size());
  const Array lse =
      Array::Poisoned(on, AccumulatorOf(on.dtype), c.batch * c.heads * c.seq_q);
  const auto column = [&](const Array& x, int64_t columns) {
    return static_cast<char*>(x.data()) + columns * SizeOf(on.dtype);
  };
  f.forward({.shape = p.Shape(),
             .q = q.data(),
             .k = kv.data(),
             .v = column(kv, p.v_column),
             .q_stride = p.q_stride,
             .kv_stride = p.kv_stride,
             .kv_batch_stride = c.capacity == 0 ? 0 : p.capacity * p.kv_stride,
             .key_lengths = Data(c.key_lengths, key_lengths),
             .cu_seqlens = Data(c.cu_seqlens, cu_seqlens),
             .out = out.data(),
             .lse = lse.data(),
             .dtype = on.dtype},
            StreamOf(on));
  Outputs outputs = {out.Values(), lse.Values()};
  for (int64_t b = 0; b + 1 < c.cu_seqlens.size(); ++b) {
    for (int64_t n = 0; n < c.heads; ++n) {
      for (int64_t i = c.cu_seqlens[b + 1] - c.cu_seqlens[b]; i < c.seq_q; ++i)
        outputs.lse[(b * c.heads + n) * c.seq_q + i] = 0;
    }
  }
  if (c.capacity != 0) return outputs;

  const Array dq = Array::Poisoned(on, p.q.size());
  const Array dkv = Array::Poisoned(on, p.kv.size());
  const Array workspace =
      Array::Workspace(on, f.workspace_bytes(p.Shape(), on.dtype, on.device));
  f.backward({.shape = p.Shape(),
              .q = q.data(),
              .k = kv.data(),
              .v = column(kv, p.v_column),
              .q_stride = p.q_stride,
              .kv_stride = p.kv_stride,
              .key_lengths = Data(c.key_lengths, key_lengths),
              .cu_seqlens = Data(c.cu_seqlens, cu_seqlens),
              .out = out.data(),
              .lse = lse.data(),
              .dout = dout.data(),
              .dq = dq.data(),
              .dk = dkv.data(),
              .dv = column(dkv, p.v_column),
              .dq_stride = p.q_stride,
              .dkv_stride = p.kv_stride,
              .workspace = workspace.data(),
              .dtype = on.dtype},
             StreamOf(on));
  outputs.dq = dq.Values();
  outputs.dkv = dkv.Values();
  TakeGaps(
      p, [&](int64_t i) { return p.InQGap(i); }, outputs.dq);
  TakeGaps(
      p, [&](int64_t i) { return p.InKvGap(i); }, outputs.dkv);
  return outputs;
}

// In float32 a score sums D products of up to 4 and is off by sqrt(D) roundings
// of sums of order 2 sqrt(D), times 1/sqrt(D): 2 sqrt(D) epsilon; so is the
// exponential, relatively. Sums over the keys and over the queries add sqrt(S)
// roundings. The two scales that GPUs need for powers of two add a few.
// In bfloat16 each of these is rounded once, which changes terms of sums by up
// to a unit roundoff u, in both directions: the sum's error, over the sum, is
// below u in L2. p, then out: 2 u. p, then dv: 2 u, and one more where heads of
// a group are rounded before their sum. out's error enters dz through delta;
// dz, then dq: 2 + 2 u, and one more for dk of a group. lse stays float32.
void ExpectNear(const Backend& on, const Problem& p, const Outputs& got,
                const Outputs& oracle) {
  const Case& c = p.c;
  const double exact = 6 * std::numeric_limits<float>::epsilon() *
                       (std::sqrt(c.head_dim) + std::sqrt(c.seq_k + c.seq_q));
  EXPECT_LT(Distance(got.lse, oracle.lse), exact) << on << " " << c;
  if (on.dtype == DType::kBFloat16) {
    const double u = Roundoff(on.dtype);
    EXPECT_LT(DistanceL2(got.out, oracle.out), 2 * u) << on << " " << c;
    EXPECT_LT(DistanceL2(got.dq, oracle.dq), 4 * u) << on << " " << c;
    EXPECT_LT(DistanceL2(got.dkv, oracle.dkv), 5 * u) << on << " " << c;
  } else {
    EXPECT_LT(Distance(got.out, oracle.out), exact) << on << " " << c;
    EXPECT_LT(Distance(got.dq, oracle.dq), exact) << on << " " << c;
    EXPECT_LT(Distance(got.dkv, oracle.dkv), exact) << on << " " << c;
  }
}

}  // namespace mimo::kernels
