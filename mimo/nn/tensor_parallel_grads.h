// The sums that finish gradients of parameters that tp ranks have copies of.
#ifndef MIMO_MIMO_NN_TENSOR_PARALLEL_GRADS_H_
#define MIMO_MIMO_NN_TENSOR_PARALLEL_GRADS_H_

#include "absl/types/span.h"
#include "comm/base/communicator.h"
#include "mimo/autograd/context.h"
#include "mimo/nn/parameter.h"

namespace mimo {

// Sums the gradients of the shards of parameters with reduce_grad_over_tp over
// their copies, which then have the same bits. Once a step, behind the last
// backward, by all ranks of `tp`, with the same parameters; frozen ones are
// left out.
// Bytes sent a rank: two of each that all ranks have (one all-reduce); of one
// with c < tp copies, c - 1.
void SumGradsOverTp(const Context& ctx, absl::Span<Parameter* const> parameters,
                    Communicator& tp);

}  // namespace mimo

#endif  // MIMO_MIMO_NN_TENSOR_PARALLEL_GRADS_H_
