#include <cmath>

#include "kernels/base/cuda.cuh"
#include "kernels/loss/arg_max.h"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 256;

struct Top {
  float logit = -INFINITY;
  int token = -1;

  // Of all tokens before it and `other`.
  __device__ void Join(Top other) {
    if (other.token < 0) return;
    if (token < 0 || other.logit > logit ||
        (other.logit == logit && other.token < token)) {
      *this = other;
    }
  }
};

// A row a block.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    ArgMaxKernel(const T* logits, int32_t* tokens, int64_t vocab) {
  const T* z = logits + blockIdx.x * vocab;
  Top top;
#pragma unroll 4
  for (int64_t v = threadIdx.x; v < vocab; v += kThreads) {
    const float logit = ToFloat(z[v]);
    if (logit > top.logit) top = {logit, static_cast<int>(v)};
  }
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) {
    top.Join({__shfl_xor_sync(0xffffffff, top.logit, lane),
              __shfl_xor_sync(0xffffffff, top.token, lane)});
  }
  __shared__ float warp_logits[kThreads / kWarp];
  __shared__ int warp_tokens[kThreads / kWarp];
  if (threadIdx.x % kWarp == 0) {
    warp_logits[threadIdx.x / kWarp] = top.logit;
    warp_tokens[threadIdx.x / kWarp] = top.token;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / kWarp; ++w)
    top.Join({warp_logits[w], warp_tokens[w]});
  tokens[blockIdx.x] = top.token;
}

}  // namespace

void ArgMaxCuda(const ArgMaxArgs& args, Stream stream) {
  if (args.rows == 0) return;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    ArgMaxKernel<T><<<args.rows, kThreads, 0, RawStream(stream)>>>(
        static_cast<const T*>(args.logits), args.tokens, args.vocab);
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
