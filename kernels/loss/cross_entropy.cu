#include <cmath>

#include "absl/log/check.h"
#include "kernels/base/cuda.cuh"
#include "kernels/loss/cross_entropy.h"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 512;

// e^x to 2 ulp and what |x| 2^-24 makes of it.
__device__ float Exp(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}

__device__ float BlockMax(float x) {
  __shared__ float tops[kThreads / kWarp];
  x = WarpMax(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) tops[threadIdx.x / kWarp] = x;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) x = fmaxf(x, tops[w]);
  return x;
}

// log sum_v exp(z[v]), in one pass: every thread rescales its sum when its
// largest logit grows.
template <typename T, int kWidth>
__device__ double LogSumExp(const T* z, int64_t vocab) {
  float max = -INFINITY, sum = 0;
#pragma unroll 4
  for (int64_t v = threadIdx.x * kWidth; v < vocab; v += kThreads * kWidth) {
    float x[kWidth];
    Load<kWidth>(z + v, x);
    float top = max;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) top = fmaxf(top, x[k]);
    if (top > max) {
      sum *= Exp(max - top);
      max = top;
    }
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum += Exp(x[k] - max);
  }
  const float top = BlockMax(max);
  return double{top} + logf(BlockSum<kThreads>(sum * Exp(max - top)));
}

// dz = dloss * (exp(z - lse) - onehot(label)); dz may be z.
template <typename T, typename G, int kWidth>
__device__ void Gradient(const T* z, int64_t label, float lse, float dloss,
                         int64_t vocab, G* dz) {
#pragma unroll 4
  for (int64_t v = threadIdx.x * kWidth; v < vocab; v += kThreads * kWidth) {
    float x[kWidth];
    Load<kWidth>(z + v, x);
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      x[k] = dloss * Exp(x[k] - lse) - (v + k == label ? dloss : 0);
    Store<kWidth>(dz + v, x);
  }
}

// How a row's label is a column of `vocab`, from token `first` on.
struct Columns {
  int64_t vocab, first;
  bool part;

  // Past them: of another part.
  __device__ int64_t Of(int32_t label) const {
    if (part) {
      const int64_t column = label - first;
      return column < 0 || column >= vocab ? vocab : column;
    }
    if (label >= vocab) __trap();
    return label;
  }
};

// A row a block. kForward: lse (unless null) and loss are written, else lse is
// read. kBackward: dlogits are written; the second pass over the row finds it
// in a cache. T, G: types of logits and dlogits.
template <typename T, typename G, int kWidth, bool kForward, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    RowKernel(const T* logits, G* dlogits, const int32_t* labels, double* lse,
              double* loss, const double* dloss, Columns columns) {
  const int64_t t = blockIdx.x, vocab = columns.vocab;
  const T* z = logits + t * vocab;
  if (labels[t] < 0) {
    if (kForward && threadIdx.x == 0) loss[t] = 0;
    if constexpr (kBackward) {
      const float zero[kWidth] = {};
      for (int64_t v = threadIdx.x * kWidth; v < vocab; v += kThreads * kWidth)
        Store<kWidth>(dlogits + t * vocab + v, zero);
    }
    return;
  }
  const int64_t label = columns.Of(labels[t]);
  double l;
  if constexpr (kForward) {
    const float of_label = label < vocab ? ToFloat(z[label]) : 0;
    l = LogSumExp<T, kWidth>(z, vocab);  // its barriers: of_label is read
    if (threadIdx.x == 0) {
      if (lse != nullptr) lse[t] = l;
      loss[t] = l - of_label;
    }
  } else {
    l = lse[t];
  }
  if constexpr (kBackward)
    Gradient<T, G, kWidth>(z, label, static_cast<float>(l),
                           static_cast<float>(*dloss), vocab,
                           dlogits + t * vocab);
}

// In double: a row costs nothing beside its logits.
__global__ void JoinKernel(CrossEntropyJoinArgs args) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t >= args.tokens) return;
  args.loss[t] = 0;
  if (args.labels[t] < 0) return;
  const double* part_lse = args.part_lse + t;
  double max = -INFINITY;
  for (int64_t p = 0; p < args.parts; ++p)
    max = fmax(max, part_lse[p * args.tokens]);
  double sum = 0, logits = 0;  // of the label
  for (int64_t p = 0; p < args.parts; ++p) {
    const double lse = part_lse[p * args.tokens];
    sum += exp(lse - max);
    logits += args.part_loss[p * args.tokens + t] - lse;
  }
  args.lse[t] = max + log(sum);
  args.loss[t] = args.lse[t] + logits;
}

template <bool kForward, bool kBackward>
void Launch(const CrossEntropyForwardBackwardArgs& args, double* lse,
            int64_t first, bool part, Stream stream) {
  CHECK_GT(args.vocab, 0);
  if (args.tokens == 0) return;
  const auto launch = [&]<typename T, typename G>() {
    DispatchWidth<T>(
        args.vocab, {args.logits, args.dlogits}, [&]<int kWidth>() {
          RowKernel<T, G, kWidth, kForward, kBackward>
              <<<args.tokens, kThreads, 0, RawStream(stream)>>>(
                  static_cast<const T*>(args.logits),
                  static_cast<G*>(args.dlogits), args.labels, lse, args.loss,
                  args.dloss, Columns{args.vocab, first, part});
        });
  };
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    if (args.dlogits_dtype == args.dtype)
      return launch.template operator()<T, T>();
    CHECK(args.dlogits_dtype == DType::kBFloat16);
    launch.template operator()<T, __nv_bfloat16>();
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void CrossEntropyForwardCuda(const CrossEntropyForwardArgs& args,
                             Stream stream) {
  Launch<true, false>({.logits = args.logits,
                       .dlogits = nullptr,
                       .labels = args.labels,
                       .loss = args.loss,
                       .dloss = nullptr,
                       .tokens = args.tokens,
                       .vocab = args.vocab,
                       .dtype = args.dtype,
                       .dlogits_dtype = args.dtype},
                      args.lse, args.first, args.part, stream);
}

void CrossEntropyBackwardCuda(const CrossEntropyBackwardArgs& args,
                              Stream stream) {
  Launch<false, true>({.logits = args.logits,
                       .dlogits = args.dlogits,
                       .labels = args.labels,
                       .loss = nullptr,
                       .dloss = args.dloss,
                       .tokens = args.tokens,
                       .vocab = args.vocab,
                       .dtype = args.dtype,
                       .dlogits_dtype = args.dlogits_dtype},
                      const_cast<double*>(args.lse), args.first, args.part,
                      stream);
}

void CrossEntropyForwardBackwardCuda(
    const CrossEntropyForwardBackwardArgs& args, Stream stream) {
  Launch<true, true>(args, nullptr, 0, false, stream);
}

void CrossEntropyJoinCuda(const CrossEntropyJoinArgs& args, Stream stream) {
  if (args.tokens == 0) return;
  JoinKernel<<<CeilDiv(args.tokens, kThreads), kThreads, 0,
               RawStream(stream)>>>(args);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
