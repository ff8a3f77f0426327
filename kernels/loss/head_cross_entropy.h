// The language model's head and its cross-entropy in one, by chunks of tokens.
//   logits[t,v] = x[t,:] . w[v,:]
//   lse[t]      = log sum_v exp(logits[t,v])
//   loss        = sum over labelled t of lse[t] - logits[t, labels[t]]
//   dlogits     = dloss * (exp(logits - lse) - onehot(label))
//   dx          = dlogits w (0 where ignored),   dw = beta * dw + dlogits^T x
// Rows with labels[t] < 0 are ignored. On the CPU only labelled rows enter a
// product: they are packed first. A GPU's host does not know which these are:
// there every row enters, ignored ones with dlogits 0, so x must be finite in
// them and callers that have many pack the labelled rows themselves.
// At most `chunk` rows of logits exist at a time; the backward computes a
// chunk's logits again and turns them into dlogits. Where dloss is
// known beforehand, ForwardBackward does without that product: the gradients
// are taken while the logits are there.
// With a part of the vocabulary, dx is that part's share of the sum over parts.
// Source: the chunking of Hsu et al. 2024 (Liger Kernel), arXiv:2410.10989.
// Numerics: logits in logits_dtype, loss summed in double. dlogits are in
// dtype, as the products with w and x need them: in the place of the logits, or
// where these are wider behind them, 6 bytes of a bfloat16 head's chunk in
// place of 2. Flops (the floor), L labelled tokens: forward 2*L*H*V, backward
// 6*L*H*V, both at once 6*L*H*V.
#ifndef MIMO_KERNELS_LOSS_HEAD_CROSS_ENTROPY_H_
#define MIMO_KERNELS_LOSS_HEAD_CROSS_ENTROPY_H_

#include <cstdint>
#include <functional>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

// A part of the vocabulary, from token `first` on: the others are elsewhere.
struct VocabularyPart {
  int64_t first;
  // Makes lse [rows] and loss [rows] of this part those of the whole
  // (CrossEntropyJoin). labels [rows]. Called once a chunk, by the host.
  std::function<void(const int32_t* labels, double* lse, double* loss,
                     int64_t rows)>
      join;
};

struct HeadCrossEntropyForwardArgs {
  const void* x;          // [T, H] dtype
  const void* weight;     // [V, H] dtype
  const int32_t* labels;  // [T]; < 0: ignored, else < V
  double* loss;           // [1] sum over labelled tokens
  double* lse;            // [T]; unset where ignored
  void* workspace;        // HeadCrossEntropyWorkspaceBytes(...) bytes
  int64_t tokens, hidden, vocab, chunk;
  const VocabularyPart* part = nullptr;  // null: weight has all tokens
  DType dtype;
  DType logits_dtype;  // dtype or its accumulator dtype
};
MIMO_OP(HeadCrossEntropyForward, HeadCrossEntropyForwardArgs);

struct HeadCrossEntropyBackwardArgs {
  const void* x;          // [T, H] dtype
  const void* weight;     // [V, H] dtype
  const int32_t* labels;  // [T]
  const double* lse;      // [T]
  const double* dloss;    // [1] gradient of the loss sum
  void* dx;               // [T, H] dtype, written; null when not needed
  void* dweight;          // [V, H] accumulator dtype; null when frozen
  float dweight_beta;     // 0 on the first write of a step, then 1
  void* workspace;        // HeadCrossEntropyWorkspaceBytes(...) bytes
  int64_t tokens, hidden, vocab, chunk;
  const VocabularyPart* part = nullptr;  // null: weight has all tokens
  DType dtype;
  DType logits_dtype;  // dtype or its accumulator dtype
};
MIMO_OP(HeadCrossEntropyBackward, HeadCrossEntropyBackwardArgs);

struct HeadCrossEntropyForwardBackwardArgs {
  const void* x;          // [T, H] dtype
  const void* weight;     // [V, H] dtype
  const int32_t* labels;  // [T]
  double* loss;           // [1] sum over labelled tokens
  const double* dloss;    // [1] gradient of the loss sum
  void* dx;               // [T, H] dtype, written; null when not needed
  void* dweight;          // [V, H] accumulator dtype; null when frozen
  float dweight_beta;     // 0 on the first write of a step, then 1
  void* workspace;        // HeadCrossEntropyWorkspaceBytes(...) bytes
  int64_t tokens, hidden, vocab, chunk;
  const VocabularyPart* part = nullptr;  // null: weight has all tokens
  DType dtype;
  DType logits_dtype;  // dtype or its accumulator dtype
};
MIMO_OP(HeadCrossEntropyForwardBackward, HeadCrossEntropyForwardBackwardArgs);

int64_t HeadCrossEntropyWorkspaceBytes(int64_t chunk, int64_t hidden,
                                       int64_t vocab, DType dtype,
                                       DType logits_dtype, Device device);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_LOSS_HEAD_CROSS_ENTROPY_H_
