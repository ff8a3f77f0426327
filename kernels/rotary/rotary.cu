#include <algorithm>
#include <cstdio>

#include "absl/log/check.h"
#include "kernels/base/cuda.cuh"
#include "kernels/rotary/rotary.h"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 128;

// A row a block. A thread keeps the angles of its columns and turns every
// blockDim.y-th head by them.
template <typename T, int kWidth>
__global__ void RotaryKernel(T* x, const float* cos, const float* sin,
                             const int32_t* positions, int64_t seq,
                             int64_t first_position, int64_t heads,
                             int64_t half, int64_t stride, int64_t max_position,
                             float sign) {
  const int64_t position = positions != nullptr
                               ? positions[blockIdx.x]
                               : first_position + blockIdx.x % seq;
  if (position < 0 || position >= max_position) {
    if (threadIdx.x == 0 && threadIdx.y == 0) {
      printf("Rotary: the position of row %u is %lld, not in [0, %lld)\n",
             blockIdx.x, static_cast<long long>(position),
             static_cast<long long>(max_position));
    }
    __trap();
  }
  constexpr int kTableWidth = kWidth == 1 ? 1 : kVector<float>;
  for (int64_t i = threadIdx.x * kWidth; i < half; i += blockDim.x * kWidth) {
    float c[kWidth / kTableWidth][kTableWidth];
    float s[kWidth / kTableWidth][kTableWidth];
#pragma unroll
    for (int k = 0; k < kWidth / kTableWidth; ++k) {
      const int64_t from = position * half + i + k * kTableWidth;
      Load<kTableWidth>(cos + from, c[k]);
      Load<kTableWidth>(sin + from, s[k]);
    }
    for (int64_t n = threadIdx.y; n < heads; n += blockDim.y) {
      T* low = x + blockIdx.x * stride + n * 2 * half + i;
      float a[kWidth], b[kWidth];
      Load<kWidth>(low, a);
      Load<kWidth>(low + half, b);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const float cosine = c[k / kTableWidth][k % kTableWidth];
        const float sine = sign * s[k / kTableWidth][k % kTableWidth];
        const float turned = a[k] * cosine - b[k] * sine;
        b[k] = b[k] * cosine + a[k] * sine;
        a[k] = turned;
      }
      Store<kWidth>(low, a);
      Store<kWidth>(low + half, b);
    }
  }
}

}  // namespace

void RotaryCuda(const RotaryArgs& args, Stream stream) {
  CHECK_GE(args.tokens, 0);
  CHECK_EQ(args.head_dim % 2, 0);
  CHECK_GE(args.stride, args.heads * args.head_dim);
  if (args.tokens == 0 || args.heads == 0 || args.head_dim == 0) return;
  const int64_t half = args.head_dim / 2;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    const auto launch = [&]<int kWidth>() {
      const int columns = std::min<int64_t>(half / kWidth, kThreads);
      const int heads = std::min<int64_t>(kThreads / columns, args.heads);
      RotaryKernel<T, kWidth>
          <<<args.tokens, dim3(columns, heads), 0, RawStream(stream)>>>(
              static_cast<T*>(args.x), static_cast<const float*>(args.cos),
              static_cast<const float*>(args.sin), args.positions, args.seq,
              args.first_position, args.heads, half, args.stride,
              args.max_position, args.inverse ? -1 : 1);
    };
    if (args.stride % kVector<T> == 0) {
      DispatchWidth<T>(half, {args.x, args.cos, args.sin}, launch);
    } else {
      launch.template operator()<1>();
    }
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
