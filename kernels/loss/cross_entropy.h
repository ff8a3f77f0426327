// Cross-entropy of rows of logits, forward, backward, and both in one pass.
//   lse[t]  = log sum_v exp(logits[t,v])
//   loss[t] = lse[t] - logits[t, labels[t]]                    0 where ignored
//   dlogits = dloss * (exp(logits - lse) - onehot(labels))     0 where ignored
// A row is ignored if its label is < 0; a label past the vocabulary is fatal.
// Of a part of the vocabulary: columns are tokens first, first + 1, ...; labels
// outside are of other parts, and the logit of such a label counts as 0, so
// that of parts p, which Join makes the whole,
//   lse = log sum_p exp(lse_p),   loss = lse + sum_p (loss_p - lse_p)
// Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
// Numerics: in the accumulator dtype; exponents by ex2.approx on a GPU (2 ulp).
// lse is the double max + log(sum), so that a small loss keeps its digits: the
// loss is a sum of the two positive terms max - logit and log(sum).
// Bytes (the floor): forward T*V*size, backward and both T*V*(size + size of
// dlogits).
#ifndef MIMO_KERNELS_LOSS_CROSS_ENTROPY_H_
#define MIMO_KERNELS_LOSS_CROSS_ENTROPY_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct CrossEntropyForwardArgs {
  const void* logits;     // [T, V] dtype
  const int32_t* labels;  // [T]
  double* lse;            // [T]; unset where ignored
  double* loss;           // [T]
  int64_t tokens, vocab;
  int64_t first = 0;
  bool part = false;
  DType dtype;
};
MIMO_OP(CrossEntropyForward, CrossEntropyForwardArgs);

struct CrossEntropyBackwardArgs {
  const void* logits;  // [T, V] dtype
  void* dlogits;       // [T, V] dlogits_dtype; if that is dtype, may be logits
  const int32_t* labels;  // [T]
  const double* lse;      // [T]
  const double* dloss;    // [1]
  int64_t tokens, vocab;
  int64_t first = 0;
  bool part = false;
  DType dtype;
  DType dlogits_dtype;  // dtype, or on a GPU bfloat16
};
MIMO_OP(CrossEntropyBackward, CrossEntropyBackwardArgs);

struct CrossEntropyForwardBackwardArgs {
  const void* logits;     // [T, V] dtype
  void* dlogits;          // as in CrossEntropyBackwardArgs
  const int32_t* labels;  // [T]
  double* loss;           // [T]
  const double* dloss;    // [1]
  int64_t tokens, vocab;
  DType dtype, dlogits_dtype;
};
MIMO_OP(CrossEntropyForwardBackward, CrossEntropyForwardBackwardArgs);

struct CrossEntropyJoinArgs {
  const double* part_lse;   // [P, T]
  const double* part_loss;  // [P, T]
  const int32_t* labels;    // [T]
  double* lse;              // [T]; unset where ignored
  double* loss;             // [T]
  int64_t parts, tokens;
};
MIMO_OP(CrossEntropyJoin, CrossEntropyJoinArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_LOSS_CROSS_ENTROPY_H_
