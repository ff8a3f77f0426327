#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/log/check.h"
#include "kernels/base/parallel.h"
#include "kernels/base/vec_math.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {
namespace {

// log sum_v exp(z[v]); partial sums of a block in T, of the row in double.
template <typename T>
T LogSumExp(const T* z, int64_t vocab) {
  T max = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : max)
  for (int64_t v = 0; v < vocab; ++v) max = std::max(max, z[v]);
  constexpr int64_t kBlock = 512;
  double sum = 0;
  for (int64_t begin = 0; begin < vocab; begin += kBlock) {
    const int64_t end = std::min(vocab, begin + kBlock);
    T block = 0;
#pragma omp simd reduction(+ : block)
    for (int64_t v = begin; v < end; ++v) block += Exp(z[v] - max);
    sum += block;
  }
  return static_cast<T>(max + std::log(sum));
}

// z = dloss * exp(z - lse)
template <typename T>
void ScaledSoftmax(T lse, T dloss, int64_t vocab, T* z) {
#pragma omp simd
  for (int64_t v = 0; v < vocab; ++v) z[v] = dloss * Exp(z[v] - lse);
}

// body(row, label) of every row.
template <typename Args, typename F>
void ForRows(const Args& args, F body) {
  CHECK_GT(args.vocab, 0);
  ParallelFor(
      args.tokens, RowGrain(args.vocab), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          CHECK_LT(args.labels[t], args.vocab) << "label of token " << t;
          body(t, args.labels[t]);
        }
      });
}

template <typename T>
void Forward(const CrossEntropyForwardArgs& args) {
  ForRows(args, [&](int64_t t, int32_t label) {
    args.loss[t] = 0;
    if (label < 0) return;
    const T* z = static_cast<const T*>(args.logits) + t * args.vocab;
    const T lse = LogSumExp(z, args.vocab);
    static_cast<T*>(args.lse)[t] = lse;
    args.loss[t] = double{lse} - z[label];
  });
}

template <typename T>
void BackwardRow(T* z, int32_t label, T lse, T dloss, int64_t vocab) {
  if (label < 0) {
    std::fill_n(z, vocab, T{0});
    return;
  }
  ScaledSoftmax(lse, dloss, vocab, z);
  z[label] -= dloss;
}

template <typename T>
void Backward(const CrossEntropyBackwardArgs& args) {
  ForRows(args, [&](int64_t t, int32_t label) {
    BackwardRow(static_cast<T*>(args.logits) + t * args.vocab, label,
                static_cast<const T*>(args.lse)[t], static_cast<T>(*args.dloss),
                args.vocab);
  });
}

template <typename T>
void ForwardBackward(const CrossEntropyForwardBackwardArgs& args) {
  ForRows(args, [&](int64_t t, int32_t label) {
    T* z = static_cast<T*>(args.logits) + t * args.vocab;
    const T lse = label < 0 ? 0 : LogSumExp(z, args.vocab);
    args.loss[t] = label < 0 ? 0 : double{lse} - z[label];
    BackwardRow(z, label, lse, static_cast<T>(*args.dloss), args.vocab);
  });
}

}  // namespace

void CrossEntropyForwardCpu(const CrossEntropyForwardArgs& args) {
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Forward<T>(args); });
}

void CrossEntropyBackwardCpu(const CrossEntropyBackwardArgs& args) {
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Backward<T>(args); });
}

void CrossEntropyForwardBackwardCpu(
    const CrossEntropyForwardBackwardArgs& args) {
  DispatchCpuFloat(args.dtype, [&]<typename T>() { ForwardBackward<T>(args); });
}

}  // namespace mimo::kernels
