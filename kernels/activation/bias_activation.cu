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
constexpr int kRows = 4;

// A thread has kWidth columns and goes down the rows from blockIdx.y in steps
// of gridDim.y.
template <typename T, typename A, int kWidth>
__global__ void __launch_bounds__(kThreads)
    ForwardKernel(const T* x, const T* bias, T* y, T* z, int64_t tokens,
                  int64_t features) {
  const int64_t f = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (f >= features) return;
  float b[kWidth] = {};
  if (bias != nullptr) Load<kWidth>(bias + f, b);
  for (int64_t first = blockIdx.y; first < tokens;
       first += int64_t{kRows} * gridDim.y) {
    float v[kRows][kWidth];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t t = first + int64_t{r} * gridDim.y;
      if (t < tokens) Load<kWidth>(x + t * features + f, v[r]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
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

// As above; each block row sums its part of dbias: partial [gridDim.y, F], or
// null. The identity has no x and no dx.
template <typename T, typename A, int kWidth>
__global__ void __launch_bounds__(kThreads)
    BackwardKernel(const T* x, const T* bias, const T* dy, T* dx,
                   float* partial, int64_t tokens, int64_t features) {
  constexpr bool kIdentity = std::is_same_v<A, Identity>;
  const int64_t f = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (f >= features) return;
  float b[kWidth] = {}, sum[kWidth] = {};
  if (bias != nullptr) Load<kWidth>(bias + f, b);
  for (int64_t first = blockIdx.y; first < tokens;
       first += int64_t{kRows} * gridDim.y) {
    float v[kRows][kWidth], g[kRows][kWidth];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t t = first + int64_t{r} * gridDim.y;
      if (t >= tokens) break;
      if constexpr (!kIdentity) Load<kWidth>(x + t * features + f, v[r]);
      Load<kWidth>(dy + t * features + f, g[r]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t t = first + int64_t{r} * gridDim.y;
      if (t >= tokens) break;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if constexpr (!kIdentity) g[r][i] *= A::Derivative(v[r][i] + b[i]);
        sum[i] += g[r][i];
      }
      if constexpr (!kIdentity) Store<kWidth>(dx + t * features + f, g[r]);
    }
  }
  if (partial == nullptr) return;
  for (int i = 0; i < kWidth; ++i)
    partial[blockIdx.y * features + f + i] = sum[i];
}

// Blocks across the columns, and at most `rows` down the tokens.
dim3 Grid(int64_t tokens, int64_t features, int width, int64_t rows) {
  return dim3(CeilDiv(features, kThreads * width),
              std::min(CeilDiv(tokens, kRows), rows));
}

// Of the backward: what runs at one time, and no more partial sums than that.
int64_t BackwardRows(int64_t features, int width) {
  constexpr int kBlocksPerSm = 4;
  const int64_t across = CeilDiv(features, kThreads * width);
  return std::clamp<int64_t>(kBlocksPerSm * NumSms() / across, 1,
                             kCudaPartialRows);
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
            const dim3 grid = Grid(args.tokens, args.features, kWidth, 1 << 14);
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
              const dim3 grid = Grid(args.tokens, args.features, kWidth,
                                     BackwardRows(args.features, kWidth));
              rows = grid.y;
              BackwardKernel<T, A, kWidth>
                  <<<grid, kThreads, 0, RawStream(stream)>>>(
                      static_cast<const T*>(args.x),
                      static_cast<const T*>(args.bias),
                      static_cast<const T*>(args.dy), static_cast<T*>(args.dx),
                      partial, args.tokens, args.features);
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
