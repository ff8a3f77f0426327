// Collectives among the ranks of a group, as pairs: what the backward does is
// chosen by the name, as it follows from who needs the gradient, not from the
// forward. A null group is one rank: the value itself.
//
// Token-sharded: rank r of n has rows [r*c, (r+1)*c) of T rows, c = ceil(T/n),
// rows behind the last being padding: of finite values and no gradient.
// Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3; Korthikanti et al.
// 2022, arXiv:2205.05198, section 4.2.2; names after what Megatron-Core's
// tensor_parallel/mappings.py does.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_COLLECTIVES_H_
#define MIMO_MIMO_AUTOGRAD_OPS_COLLECTIVES_H_

#include <cstdint>

#include "comm/base/communicator.h"
#include "mimo/autograd/profiler.h"
#include "mimo/autograd/tape.h"

namespace mimo {

// c of T = `tokens`.
int64_t TokensOfRank(int64_t tokens, const Communicator* group);

// x [c, H] of each rank -> [n*c, H]. The ranks go on differently from the
// whole, so the gradient is the sum of theirs, token-sharded.
Var GatherTokensReduceGrad(const Context& ctx, const Var& x,
                           Communicator* group);
// x [c, H] of each rank -> [T, H]. The ranks go on alike, so the gradient is
// the rank's own rows of it.
Var GatherTokensSliceGrad(const Context& ctx, const Var& x, int64_t tokens,
                          Communicator* group);
// x [T, H], alike on all ranks -> the rank's rows [c, H]. The ranks have
// gradients of their rows: x's is all of these.
Var SliceTokensGatherGrad(const Context& ctx, const Var& x,
                          Communicator* group);
// x [T, H] of each rank, summed -> the rank's rows [c, H]. Each summand's
// gradient is all ranks' rows.
Var ReduceTokensGatherGrad(const Context& ctx, const Var& x,
                           Communicator* group);
// x of each rank, summed, to all, which go on alike: each summand's gradient is
// the sum's.
Var ReduceCopyGrad(const Context& ctx, const Var& x, Communicator* group);
// x, alike on all ranks, which go on differently: its gradient is the sum of
// theirs.
Var CopyReduceGrad(const Context& ctx, const Var& x, Communicator* group);

// The collectives alone. Enqueued on ctx.comm, behind what ctx.compute has now;
// their readers make compute wait for comm first.
Tensor GatherTokens(const Context& ctx, const Tensor& x, Communicator& group);
Tensor ReduceTokens(const Context& ctx, const Tensor& x, Communicator& group);
Tensor Reduce(const Context& ctx, const Tensor& x, Communicator& group);

// The meeting on ctx.comm that a profile shows for an operation of `group`.
ProfileRange Meeting(const Context& ctx, const char* operation,
                     const Communicator& group);

// x [T, ...] with rows of zeros behind it, up to a multiple.
Tensor PadTokens(const Context& ctx, const Tensor& x, int64_t multiple);
// index [L] int32 with -1 behind it, up to `rows`.
Tensor PadIndices(const Context& ctx, const Tensor& index, int64_t rows);

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_COLLECTIVES_H_
