#include <algorithm>
#include <type_traits>

#include "absl/log/check.h"
#include "kernels/activation/bias_activation.h"
#include "kernels/base/cuda.cuh"
#include "kernels/reduce/row_chunks.h"
#include "kernels/reduce/sum_rows.cuh"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 128;

// With the approximate division, two ulp off: the exact one would be more
// instructions than memory has time for.
__device__ float Sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

// An activation: Value(z) and its Derivative(z).
struct Identity {
  static __device__ float Value(float z) { return z; }
};
struct Gelu {
  static __device__ float Cdf(float z) {
    return 0.5f * (1 + erff(0.70710678f * z));
  }
  static __device__ float Value(float z) { return z * Cdf(z); }
  static __device__ float Derivative(float z) {
    constexpr float kDensity = 0.39894228f;  // 1 / sqrt(2 pi)
    return Cdf(z) + z * kDensity * __expf(-0.5f * z * z);
  }
};
// (1 + tanh u) / 2 = sigmoid(2 u)
struct GeluTanh {
  static constexpr float kSlope = 0.79788456f;  // sqrt(2 / pi)
  static constexpr float kCubic = 0.044715f;
  static __device__ float Half(float z) {
    return Sigmoid(2 * kSlope * (z + kCubic * z * z * z));
  }
  static __device__ float Value(float z) { return z * Half(z); }
  static __device__ float Derivative(float z) {
    const float s = Half(z);
    return s + 2 * z * s * (1 - s) * kSlope * (1 + 3 * kCubic * z * z);
  }
};
// z * sigmoid(a z)
__device__ float SwishDerivative(float z, float a) {
  const float s = Sigmoid(a * z);
  return s * (1 + a * z * (1 - s));
}
struct QuickGelu {
  static __device__ float Value(float z) { return z * Sigmoid(1.702f * z); }
  static __device__ float Derivative(float z) {
    return SwishDerivative(z, 1.702f);
  }
};
struct Silu {
  static __device__ float Value(float z) { return z * Sigmoid(z); }
  static __device__ float Derivative(float z) { return SwishDerivative(z, 1); }
};
struct Relu {
  static __device__ float Value(float z) { return z < 0 ? 0 : z; }  // keeps NaN
  static __device__ float Derivative(float z) { return z > 0 ? 1 : 0; }
};

// Calls f.template operator()<A>() with the type above of `activation`.
template <typename F>
void Dispatch(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kIdentity:
      return f.template operator()<Identity>();
    case Activation::kGelu:
      return f.template operator()<Gelu>();
    case Activation::kGeluTanh:
      return f.template operator()<GeluTanh>();
    case Activation::kQuickGelu:
      return f.template operator()<QuickGelu>();
    case Activation::kSilu:
      return f.template operator()<Silu>();
    case Activation::kRelu:
      return f.template operator()<Relu>();
  }
  LOG(FATAL) << "no such activation: " << static_cast<int>(activation);
}

// Rows whose loads a thread issues together.
constexpr int kForwardRows = 4;

// A thread has kWidth columns of every gridDim.y-th row.
template <typename T, typename A, int kWidth>
__global__ void __launch_bounds__(kThreads)
    ForwardKernel(const T* x, const T* bias, T* y, T* z, int64_t tokens,
                  int64_t features) {
  const int64_t f = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (f >= features) return;
  float b[kWidth] = {};
  if (bias != nullptr) Load<kWidth>(bias + f, b);
  for (int64_t first = blockIdx.y; first < tokens;
       first += int64_t{kForwardRows} * gridDim.y) {
    float v[kForwardRows][kWidth];
#pragma unroll
    for (int r = 0; r < kForwardRows; ++r) {
      const int64_t t = first + int64_t{r} * gridDim.y;
      if (t < tokens) Load<kWidth>(x + t * features + f, v[r]);
    }
#pragma unroll
    for (int r = 0; r < kForwardRows; ++r) {
      const int64_t t = first + int64_t{r} * gridDim.y;
      if (t >= tokens) break;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[r][i] += b[i];
      if (z != nullptr) Store<kWidth>(z + t * features + f, v[r]);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[r][i] = A::Value(v[r][i]);
      Store<kWidth>(y + t * features + f, v[r]);
    }
  }
}

constexpr int kBackwardWarps = 16, kBackwardBlocksPerSm = 2;

// A block has the columns of one warp, kWarp * kWidth, and its warps share the
// rows out with those of the blocks below it; what they sum is added in shared
// memory into a row of partial [gridDim.y, F], which may be null. The identity
// has no x and no dx.
template <typename T, typename A, int kWidth>
__global__ void __launch_bounds__(kBackwardWarps* kWarp, kBackwardBlocksPerSm)
    BackwardKernel(const T* x, const T* bias, const T* dy, T* dx,
                   float* partial, int64_t tokens, int64_t features) {
  constexpr bool kIdentity = std::is_same_v<A, Identity>;
  static_assert(kBackwardWarps >= kWidth);
  __shared__ float sums[kBackwardWarps][kWidth][kWarp];
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t f = (int64_t{blockIdx.x} * kWarp + lane) * kWidth;
  const int64_t step = int64_t{gridDim.y} * kBackwardWarps;
  float b[kWidth] = {}, sum[kWidth] = {};
  if (bias != nullptr && f < features) Load<kWidth>(bias + f, b);
  for (int64_t t = int64_t{blockIdx.y} * kBackwardWarps + warp;
       t < tokens && f < features; t += step) {
    float v[kWidth], g[kWidth];
    if constexpr (!kIdentity) Load<kWidth>(x + t * features + f, v);
    Load<kWidth>(dy + t * features + f, g);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if constexpr (!kIdentity) g[i] *= A::Derivative(v[i] + b[i]);
      sum[i] += g[i];
    }
    if constexpr (!kIdentity) Store<kWidth>(dx + t * features + f, g);
  }
  if (partial == nullptr) return;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sums[warp][i][lane] = sum[i];
  __syncthreads();
  if (warp >= kWidth || f >= features) return;  // warp i adds columns f + i
  float total = 0;
#pragma unroll
  for (int w = 0; w < kBackwardWarps; ++w) total += sums[w][warp][lane];
  partial[blockIdx.y * features + f + warp] = total;
}

}  // namespace

void BiasActivationForwardCuda(const BiasActivationForwardArgs& args,
                               Stream stream) {
  CHECK_GT(args.features, 0);
  if (args.tokens == 0) return;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    DispatchWidth<T>(
        args.features, {args.x, args.bias, args.y, args.z}, [&]<int kWidth>() {
          Dispatch(args.activation, [&]<typename A>() {
            const dim3 grid(
                CeilDiv(args.features, kThreads * kWidth),
                std::min<int64_t>(CeilDiv(args.tokens, kForwardRows), 1 << 14));
            ForwardKernel<T, A, kWidth>
                <<<grid, kThreads, 0, RawStream(stream)>>>(
                    static_cast<const T*>(args.x),
                    static_cast<const T*>(args.bias), static_cast<T*>(args.y),
                    static_cast<T*>(args.z), args.tokens, args.features);
          });
        });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

void BiasActivationBackwardCuda(const BiasActivationBackwardArgs& args,
                                Stream stream) {
  CHECK_GT(args.features, 0);
  if (args.activation == Activation::kIdentity) {
    CHECK(args.x == nullptr && args.dx == nullptr)
        << "BiasActivation: the identity's dx is dy";
    if (args.dbias == nullptr) return;
  }
  float* partial =
      args.dbias == nullptr ? nullptr : static_cast<float*>(args.workspace);
  int64_t rows = 0;
  if (args.tokens > 0) {
    DispatchCudaFloat(args.dtype, [&]<typename T>() {
      DispatchWidth<T>(
          args.features, {args.x, args.bias, args.dy, args.dx},
          [&]<int kWidth>() {
            Dispatch(args.activation, [&]<typename A>() {
              // What runs at one time.
              const int64_t columns = CeilDiv(args.features, kWarp * kWidth);
              rows = std::min(
                  {std::max<int64_t>(kBackwardBlocksPerSm * NumSms() / columns,
                                     1),
                   CeilDiv(args.tokens, kBackwardWarps), kCudaPartialRows});
              BackwardKernel<T, A, kWidth>
                  <<<dim3(columns, rows), dim3(kWarp, kBackwardWarps), 0,
                     RawStream(stream)>>>(static_cast<const T*>(args.x),
                                          static_cast<const T*>(args.bias),
                                          static_cast<const T*>(args.dy),
                                          static_cast<T*>(args.dx), partial,
                                          args.tokens, args.features);
            });
          });
    });
    MIMO_CUDA_CHECK(cudaGetLastError());
  }
  if (args.dbias != nullptr) {
    SumRows(partial, rows, args.features, args.dbias_beta,
            static_cast<float*>(args.dbias), stream);
  }
}

}  // namespace mimo::kernels
