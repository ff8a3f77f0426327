#include <cmath>

#include "kernels/attention/merge_attention.h"
#include "kernels/base/cuda.cuh"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 256;

// A block a token: blockIdx.x is its place in sample blockIdx.y. kWidth columns
// at once are of one head.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    MergeKernel(const MergeAttentionArgs args) {
  const int64_t i = blockIdx.x, b = blockIdx.y, dim = args.head_dim;
  int64_t row = b * args.seq + i;
  if (args.cu_seqlens != nullptr) {
    row = args.cu_seqlens[b] + i;
    if (row >= args.cu_seqlens[b + 1]) return;
  }
  const int64_t width = args.heads * dim;
  float* all_lse = static_cast<float*>(args.lse);
  float* out = static_cast<float*>(args.out) + row * width;
  const T* out_b = static_cast<const T*>(args.out_b) + row * width;
  const auto place = [&](int64_t n) {
    return (b * args.heads + n) * args.seq + i;
  };
  const auto joint = [&](float lse, float lse_b) {
    const float max = fmaxf(lse, lse_b);
    if (args.first) return lse_b;
    if (max == -INFINITY) return max;
    return max + logf(expf(lse - max) + expf(lse_b - max));
  };
  for (int64_t c = threadIdx.x * kWidth; c < width; c += kThreads * kWidth) {
    const int64_t at = place(c / dim);
    const float lse_b = static_cast<const float*>(args.lse_b)[at];
    float of_a[kWidth], of_b[kWidth];
    Load<kWidth>(out_b + c, of_b);
    if (args.first) {
      Store<kWidth>(out + c, of_b);
      continue;
    }
    const float lse = all_lse[at], sum = joint(lse, lse_b);
    if (sum == -INFINITY) continue;
    const float share = expf(lse - sum), share_b = expf(lse_b - sum);
    Load<kWidth>(out + c, of_a);
    // The same rounding whatever the width.
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      of_a[k] = fmaf(share, of_a[k], __fmul_rn(share_b, of_b[k]));
    Store<kWidth>(out + c, of_a);
  }
  __syncthreads();  // lse has been read
  for (int64_t n = threadIdx.x; n < args.heads; n += kThreads) {
    const int64_t at = place(n);
    all_lse[at] = joint(args.first ? 0 : all_lse[at],
                        static_cast<const float*>(args.lse_b)[at]);
  }
}

}  // namespace

void MergeAttentionCuda(const MergeAttentionArgs& args, Stream stream) {
  if (args.batch * args.seq == 0) return;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    // 16 bytes of out.
    DispatchWidth<float>(
        args.head_dim, {args.out, args.out_b}, [&]<int kWidth>() {
          MergeKernel<T, kWidth>
              <<<dim3(args.seq, args.batch), kThreads, 0, RawStream(stream)>>>(
                  args);
        });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
