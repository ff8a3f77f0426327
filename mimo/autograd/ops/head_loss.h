// The language model's head and its loss as one node.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_HEAD_LOSS_H_
#define MIMO_MIMO_AUTOGRAD_OPS_HEAD_LOSS_H_

#include <optional>

#include "kernels/base/dtype.h"
#include "mimo/autograd/tape.h"
#include "mimo/nn/parallel_groups.h"
#include "mimo/nn/parameter.h"

namespace mimo {

// Sum of the labelled tokens' cross-entropies: [1] float64.
// x [T, H], weight [V, H], labels [T] int32 (the token that row t predicts; <
// 0: ignored). logit_dtype: float32 logits of 16-bit products; none: of x's
// dtype. Seed it with the gradient of the sum, [1] float64; given as
// `dloss` already, it must be the same: the gradients are then taken during the
// forward, a third of the backward's products less.
//
// Of tp ranks each has a part of the vocabulary, weight [V/tp, H], and all have
// the same labels and get the same sum. With sequence parallelism x is
// token-sharded (collectives.h); labels are of all tokens.
// Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
Var HeadLoss(const Context& ctx, const Var& x, Parameter& weight,
             const Tensor& labels, const Tensor& dloss = {},
             const ParallelGroups& groups = {},
             std::optional<DType> logit_dtype = {});

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_HEAD_LOSS_H_
