// A pass over the chunks of the head's loss: forward where there is a loss,
// backward where there is a dloss.
#ifndef MIMO_KERNELS_LOSS_HEAD_PASS_H_
#define MIMO_KERNELS_LOSS_HEAD_PASS_H_

#include "absl/log/check.h"
#include "kernels/loss/head_cross_entropy.h"

namespace mimo::kernels {

struct HeadPass {
  HeadCrossEntropyForwardBackwardArgs args;
  // [T] of a forward alone, or for a backward alone; else null.
  double* lse;

  bool forward() const { return args.loss != nullptr; }
  bool backward() const { return args.dloss != nullptr; }
};

inline HeadPass PassOf(const HeadCrossEntropyForwardBackwardArgs& args) {
  CHECK(args.tokens >= 0 && args.hidden > 0 && args.vocab > 0);
  CHECK_GT(args.chunk, 0);
  CHECK(args.workspace != nullptr);
  CHECK(args.logits_dtype == args.dtype ||
        args.logits_dtype == AccumulatorOf(args.dtype));
  return {args, nullptr};
}
inline HeadPass PassOf(const HeadCrossEntropyForwardArgs& args) {
  HeadPass pass = PassOf(HeadCrossEntropyForwardBackwardArgs{
      args.x, args.weight, args.labels, args.loss, nullptr, nullptr, nullptr, 0,
      args.workspace, args.tokens, args.hidden, args.vocab, args.chunk,
      args.part, args.dtype, args.logits_dtype});
  pass.lse = args.lse;
  return pass;
}
inline HeadPass PassOf(const HeadCrossEntropyBackwardArgs& args) {
  HeadPass pass = PassOf(HeadCrossEntropyForwardBackwardArgs{
      args.x, args.weight, args.labels, nullptr, args.dloss, args.dx,
      args.dweight, args.dweight_beta, args.workspace, args.tokens, args.hidden,
      args.vocab, args.chunk, args.part, args.dtype, args.logits_dtype});
  pass.lse = const_cast<double*>(args.lse);
  return pass;
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_LOSS_HEAD_PASS_H_
