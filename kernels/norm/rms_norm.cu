#include <algorithm>

#include "absl/log/check.h"
#include "kernels/base/cuda.cuh"
#include "kernels/norm/rms_norm.h"
#include "kernels/reduce/row_chunks.h"
#include "kernels/reduce/sum_rows.cuh"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 512;

// A row a block. The row is read twice: the second time from L1.
template <typename T, int kWidth>
__global__ void ForwardKernel(const T* x, const T* residual, const T* weight,
                              T* sum, T* y, float* rstd, int64_t hidden,
                              float eps) {
  const int64_t row = blockIdx.x * hidden;
  // s at column h, rounded to T as it is kept.
  const auto stream = [&](int64_t h, float(&s)[kWidth]) {
    Load<kWidth>(x + row + h, s);
    if (residual == nullptr) return;
    float r[kWidth];
    Load<kWidth>(residual + row + h, r);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) s[i] = ToFloat(FromFloat<T>(s[i] + r[i]));
  };
  float squares = 0;
  for (int64_t h = threadIdx.x * kWidth; h < hidden; h += kThreads * kWidth) {
    float s[kWidth];
    stream(h, s);
    if (residual != nullptr) Store<kWidth>(sum + row + h, s);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares += s[i] * s[i];
  }
  const float r = rsqrtf(BlockSum<kThreads>(squares) / hidden + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
  for (int64_t h = threadIdx.x * kWidth; h < hidden; h += kThreads * kWidth) {
    float s[kWidth], w[kWidth];
    stream(h, s);
    Load<kWidth>(weight + h, w);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) s[i] *= r * w[i];
    Store<kWidth>(y + row + h, s);
  }
}

// Block b takes rows b, b + gridDim.x, ... and sums their part of dweight, a
// thread its own columns, in shared memory: partial [gridDim.x, H].
template <typename T, int kWidth>
__global__ void BackwardKernel(const T* x, const T* weight, const float* rstd,
                               const T* dy, T* dx, bool accumulate_dx,
                               float* partial, int64_t tokens, int64_t hidden) {
  extern __shared__ float dweight[];  // [H]; unused when partial is null
  const int64_t first = threadIdx.x * kWidth;
  constexpr int64_t kStep = kThreads * kWidth;
  if (partial != nullptr) {
    for (int64_t h = first; h < hidden; h += kStep)
      for (int i = 0; i < kWidth; ++i) dweight[h + i] = 0;
  }
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    const float r = rstd[t];
    float dot = 0;
    for (int64_t h = first; h < hidden; h += kStep) {
      float s[kWidth], g[kWidth], w[kWidth];
      Load<kWidth>(x + t * hidden + h, s);
      Load<kWidth>(dy + t * hidden + h, g);
      Load<kWidth>(weight + h, w);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float gs = g[i] * s[i];
        dot += w[i] * gs;
        if (partial != nullptr) dweight[h + i] += gs * r;
      }
    }
    if (dx == nullptr) continue;
    const float along = r * r * BlockSum<kThreads>(dot) / hidden;
    for (int64_t h = first; h < hidden; h += kStep) {
      float s[kWidth], g[kWidth], w[kWidth], d[kWidth] = {};
      Load<kWidth>(x + t * hidden + h, s);
      Load<kWidth>(dy + t * hidden + h, g);
      Load<kWidth>(weight + h, w);
      if (accumulate_dx) Load<kWidth>(dx + t * hidden + h, d);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) d[i] += r * (w[i] * g[i] - s[i] * along);
      Store<kWidth>(dx + t * hidden + h, d);
    }
  }
  if (partial != nullptr) {
    for (int64_t h = first; h < hidden; h += kStep)
      for (int i = 0; i < kWidth; ++i)
        partial[blockIdx.x * hidden + h + i] = dweight[h + i];
  }
}

}  // namespace

void RmsNormForwardCuda(const RmsNormForwardArgs& args, Stream stream) {
  CHECK_EQ(args.sum == nullptr, args.residual == nullptr)
      << "RmsNorm: a sum goes with a residual";
  if (args.tokens == 0) return;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    DispatchWidth<T>(
        args.hidden, {args.x, args.residual, args.weight, args.sum, args.y},
        [&]<int kWidth>() {
          ForwardKernel<T, kWidth>
              <<<args.tokens, kThreads, 0, RawStream(stream)>>>(
                  static_cast<const T*>(args.x),
                  static_cast<const T*>(args.residual),
                  static_cast<const T*>(args.weight), static_cast<T*>(args.sum),
                  static_cast<T*>(args.y), static_cast<float*>(args.rstd),
                  args.hidden, args.eps);
        });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

void RmsNormBackwardCuda(const RmsNormBackwardArgs& args, Stream stream) {
  const int64_t blocks = std::min(args.tokens, kCudaPartialRows);
  float* partial =
      args.dweight == nullptr ? nullptr : static_cast<float*>(args.workspace);
  if (blocks > 0) {
    DispatchCudaFloat(args.dtype, [&]<typename T>() {
      DispatchWidth<T>(
          args.hidden, {args.x, args.weight, args.dy, args.dx},
          [&]<int kWidth>() {
            const auto kernel = BackwardKernel<T, kWidth>;
            const int shared =
                partial == nullptr ? 0 : args.hidden * sizeof(float);
            MIMO_CUDA_CHECK(cudaFuncSetAttribute(
                kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
            kernel<<<blocks, kThreads, shared, RawStream(stream)>>>(
                static_cast<const T*>(args.x),
                static_cast<const T*>(args.weight),
                static_cast<const float*>(args.rstd),
                static_cast<const T*>(args.dy), static_cast<T*>(args.dx),
                args.accumulate_dx, partial, args.tokens, args.hidden);
          });
    });
    MIMO_CUDA_CHECK(cudaGetLastError());
  }
  if (args.dweight != nullptr) {
    SumRows(partial, blocks, args.hidden, args.dweight_beta,
            static_cast<float*>(args.dweight), stream);
  }
}

}  // namespace mimo::kernels
