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
double LogSumExp(const T* z, int64_t vocab) {
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
  return max + std::log(sum);
}

// dz = dloss * exp(z - lse); dz may be z.
template <typename T>
void ScaledSoftmax(const T* z, T lse, T dloss, int64_t vocab, T* dz) {
#pragma omp simd
  for (int64_t v = 0; v < vocab; ++v) dz[v] = dloss * Exp(z[v] - lse);
}

// A row's label as a column, or one of these.
constexpr int64_t kIgnored = -1, kOfAnotherPart = -2;

// body(row, column of its label) of every row.
template <typename Args, typename F>
void ForRows(const Args& args, int64_t first, bool part, F body) {
  CHECK_GT(args.vocab, 0);
  ParallelFor(
      args.tokens, RowGrain(args.vocab), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          int64_t column = args.labels[t] < 0 ? kIgnored : args.labels[t];
          if (column >= 0 && part) {
            column -= first;
            if (column < 0 || column >= args.vocab) column = kOfAnotherPart;
          }
          CHECK_LT(column, args.vocab) << "label of token " << t;
          body(t, column);
        }
      });
}

template <typename T>
void Forward(const CrossEntropyForwardArgs& args) {
  ForRows(args, args.first, args.part, [&](int64_t t, int64_t label) {
    args.loss[t] = 0;
    if (label == kIgnored) return;
    const T* z = static_cast<const T*>(args.logits) + t * args.vocab;
    args.lse[t] = LogSumExp(z, args.vocab);
    args.loss[t] = args.lse[t] - (label < 0 ? 0 : z[label]);
  });
}

template <typename T>
void BackwardRow(const T* z, int64_t label, T lse, T dloss, int64_t vocab,
                 T* dz) {
  if (label == kIgnored) {
    std::fill_n(dz, vocab, T{0});
    return;
  }
  ScaledSoftmax(z, lse, dloss, vocab, dz);
  if (label >= 0) dz[label] -= dloss;
}

template <typename T>
void Backward(const CrossEntropyBackwardArgs& args) {
  CHECK(args.dlogits_dtype == args.dtype);
  ForRows(args, args.first, args.part, [&](int64_t t, int64_t label) {
    BackwardRow(static_cast<const T*>(args.logits) + t * args.vocab, label,
                static_cast<T>(args.lse[t]), static_cast<T>(*args.dloss),
                args.vocab, static_cast<T*>(args.dlogits) + t * args.vocab);
  });
}

template <typename T>
void ForwardBackward(const CrossEntropyForwardBackwardArgs& args) {
  CHECK(args.dlogits_dtype == args.dtype);
  ForRows(args, 0, false, [&](int64_t t, int64_t label) {
    const T* z = static_cast<const T*>(args.logits) + t * args.vocab;
    const double lse = label < 0 ? 0 : LogSumExp(z, args.vocab);
    args.loss[t] = label < 0 ? 0 : lse - z[label];
    BackwardRow(z, label, static_cast<T>(lse), static_cast<T>(*args.dloss),
                args.vocab, static_cast<T*>(args.dlogits) + t * args.vocab);
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

void CrossEntropyJoinCpu(const CrossEntropyJoinArgs& args) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    args.loss[t] = 0;
    if (args.labels[t] < 0) continue;
    double max = -std::numeric_limits<double>::infinity();
    for (int64_t p = 0; p < args.parts; ++p)
      max = std::max(max, args.part_lse[p * args.tokens + t]);
    double sum = 0, logits = 0;  // of the label
    for (int64_t p = 0; p < args.parts; ++p) {
      const double lse = args.part_lse[p * args.tokens + t];
      sum += std::exp(lse - max);
      logits += args.part_loss[p * args.tokens + t] - lse;
    }
    args.lse[t] = max + std::log(sum);
    args.loss[t] = args.lse[t] + logits;
  }
}

}  // namespace mimo::kernels
