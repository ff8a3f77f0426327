// Attention among the ranks of a context-parallel group, each with a part of
// every sample's tokens.
//
// A sample is cut into 2n chunks; rank r of n has chunks r and 2n-1-r, so that
// under the causal mask all ranks have as much to do. A rank's rows are two
// halves: the first chunks of all samples, then the second ones. (So a half,
// packed or not, is a batch for kernels/attention.) ContextParallelRows says
// which rows of the whole these are.
// Source: Liu et al. 2023, arXiv:2310.01889 (the ring); the zig-zag partition
// is that of Llama 3, arXiv:2407.21783, section 3.3.2, and Megatron-Core.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_RING_ATTENTION_H_
#define MIMO_MIMO_AUTOGRAD_OPS_RING_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/base/communicator.h"
#include "mimo/autograd/ops/attention.h"

namespace mimo {

// As Attention, on a rank's rows qkv [2R, (N + 2G) D]: `chunk` is a batch of
// chunks, its seq_q = seq_k = S the tokens of one, and a half has R = B*S rows.
// Packed, cu_seqlens is a half's, positions the rank's rows', and S the longest
// chunk. Rows behind the halves are padding (collectives.h). Of `rotary`, seq
// and first_position are not read.
// Keys and values go round the ring beside the attention to those that came
// before; the backward sends them round again, and their gradients home.
Var RingAttention(const Context& ctx, const Var& qkv,
                  const kernels::AttentionShape& chunk, Communicator& cp,
                  const Rotary* rotary = nullptr, const Packing& packing = {});

// `tokens` of a sample with the padding behind them that makes its chunks
// equal: a multiple of 2n. One rank needs none.
int64_t ContextParallelLength(int64_t tokens, int ranks);

// The rows of the whole that a rank has, in its order; the whole's samples are
// rows cu_seqlens[b] to cu_seqlens[b+1]. Error: a sample's length that 2n does
// not divide.
absl::StatusOr<std::vector<int32_t>> ContextParallelRows(
    absl::Span<const int32_t> cu_seqlens, int ranks, int rank);

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_RING_ATTENTION_H_
