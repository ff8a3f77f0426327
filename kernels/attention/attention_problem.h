// What the tests of attention share: cases, their inputs, and a run of both
// directions on a backend.
#ifndef MIMO_KERNELS_ATTENTION_ATTENTION_PROBLEM_H_
#define MIMO_KERNELS_ATTENTION_ATTENTION_PROBLEM_H_

#include <cstdint>
#include <functional>
#include <ostream>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {

using Values = std::vector<double>;

struct Case {
  int64_t batch, seq_q, seq_k, heads, kv_heads, head_dim;
  bool causal;
  std::vector<int32_t> key_lengths = {};
  int64_t capacity = 0;  // keys that a sample has room for; 0: seq_k
  std::vector<int32_t> cu_seqlens = {};
  int64_t gap = 3;  // elements behind q, k and v in their wider rows
};
std::ostream& operator<<(std::ostream& out, const Case& c);

// q and kv lie in wider rows, as in a fused projection. What must not be read
// is NaN: gaps in a row, room without a key. Hidden keys are large.
struct Problem {
  explicit Problem(const Case& c);

  AttentionShape Shape() const;
  // Whether element i of q, or of kv, is in a gap.
  bool InQGap(int64_t i) const { return i % q_stride >= q_stride - c.gap; }
  bool InKvGap(int64_t i) const { return i % v_column >= v_column - c.gap; }

  Case c;
  int64_t rows_q, capacity, rows_k;
  int64_t q_stride, v_column, kv_stride;
  Values q, kv, dout;
};

// The op, or one way of it.
struct Functions {
  std::function<void(const AttentionForwardArgs&, Stream)> forward =
      AttentionForward;
  std::function<void(const AttentionBackwardArgs&, Stream)> backward =
      AttentionBackward;
  std::function<int64_t(const AttentionShape&, DType, Device)> workspace_bytes =
      AttentionBackwardWorkspaceBytes;
};

struct Outputs {
  Values out, lse, dq, dkv;  // of the layout of q and kv
};

// Runs the forward and, without a KV cache, the backward on what it returned.
// Fails where something was written into a gap; gaps, and what lse leaves
// unset, are 0 then.
Outputs Compute(const Backend& on, const Problem& p, const Functions& f = {});

// Expects all outputs of `got` near the oracle's.
void ExpectNear(const Backend& on, const Problem& p, const Outputs& got,
                const Outputs& oracle);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ATTENTION_ATTENTION_PROBLEM_H_
