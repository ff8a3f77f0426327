#include <algorithm>

#include "absl/log/check.h"
#include "kernels/activation/silu_gate.h"
#include "kernels/base/cuda.cuh"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 128;

// bfloat16 results are rounded by more than the fast functions err.
template <typename T>
__device__ float Sigmoid(float x) {
  if constexpr (sizeof(T) == 4) {
    return 1 / (1 + expf(-x));
  } else {
    return __fdividef(1, 1 + __expf(-x));
  }
}

// A thread takes kWidth columns of a row.
template <typename T, int kWidth>
__global__ void ForwardKernel(const T* x, T* y, int64_t tokens,
                              int64_t features) {
  const int64_t f = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (f >= features) return;
  for (int64_t t = blockIdx.y; t < tokens; t += gridDim.y) {
    const T* gate = x + t * 2 * features + f;
    float g[kWidth], u[kWidth];
    Load<kWidth>(gate, g);
    Load<kWidth>(gate + features, u);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) u[i] *= g[i] * Sigmoid<T>(g[i]);
    Store<kWidth>(y + t * features + f, u);
  }
}

template <typename T, int kWidth>
__global__ void BackwardKernel(const T* x, const T* dy, T* dx, int64_t tokens,
                               int64_t features) {
  const int64_t f = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (f >= features) return;
  for (int64_t t = blockIdx.y; t < tokens; t += gridDim.y) {
    const int64_t gate = t * 2 * features + f;
    float g[kWidth], u[kWidth], d[kWidth];
    Load<kWidth>(x + gate, g);
    Load<kWidth>(x + gate + features, u);
    Load<kWidth>(dy + t * features + f, d);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float s = Sigmoid<T>(g[i]);
      u[i] *= d[i] * s * (1 + g[i] * (1 - s));
      d[i] *= g[i] * s;
    }
    Store<kWidth>(dx + gate, u);
    Store<kWidth>(dx + gate + features, d);
  }
}

dim3 Grid(int64_t tokens, int64_t vectors) {
  return dim3(CeilDiv(vectors, kThreads), std::min<int64_t>(tokens, 65535));
}

}  // namespace

void SiluGateForwardCuda(const SiluGateForwardArgs& args, Stream stream) {
  CHECK_GE(args.tokens, 0);
  CHECK_GT(args.features, 0);
  if (args.tokens == 0) return;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    DispatchWidth<T>(args.features, {args.x, args.y}, [&]<int kWidth>() {
      ForwardKernel<T, kWidth><<<Grid(args.tokens, args.features / kWidth),
                                 kThreads, 0, RawStream(stream)>>>(
          static_cast<const T*>(args.x), static_cast<T*>(args.y), args.tokens,
          args.features);
    });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

void SiluGateBackwardCuda(const SiluGateBackwardArgs& args, Stream stream) {
  CHECK_GE(args.tokens, 0);
  CHECK_GT(args.features, 0);
  if (args.tokens == 0) return;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    DispatchWidth<T>(
        args.features, {args.x, args.dy, args.dx}, [&]<int kWidth>() {
          BackwardKernel<T, kWidth><<<Grid(args.tokens, args.features / kWidth),
                                      kThreads, 0, RawStream(stream)>>>(
              static_cast<const T*>(args.x), static_cast<const T*>(args.dy),
              static_cast<T*>(args.dx), args.tokens, args.features);
        });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
