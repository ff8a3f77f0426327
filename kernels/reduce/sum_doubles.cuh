// SumDoubles: finish(sum of x[0, n)) on the device, in a fixed order: the end
// of a sum that blocks have shared out.
#ifndef MIMO_KERNELS_REDUCE_SUM_DOUBLES_CUH_
#define MIMO_KERNELS_REDUCE_SUM_DOUBLES_CUH_

#include "kernels/base/cuda.cuh"

namespace mimo::kernels {

// Thread 0 gets the sum over a block of kThreads threads, a fixed order. For
// one use a kernel.
template <int kThreads>
__device__ inline double SumOfBlock(double x) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ double sums[kWarps];
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2)
    x += __shfl_down_sync(0xffffffff, x, lane);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  if (threadIdx.x > 0) return 0;
#pragma unroll
  for (int w = 1; w < kWarps; ++w) x += sums[w];
  return x;
}

inline constexpr int kSumDoublesThreads = 1024;

template <typename F>
__global__ void SumDoublesKernel(const double* x, int64_t n, F finish) {
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < n; i += kSumDoublesThreads) sum += x[i];
  sum = SumOfBlock<kSumDoublesThreads>(sum);
  if (threadIdx.x == 0) finish(sum);
}

// finish: a __device__ lambda.
template <typename F>
void SumDoubles(const double* x, int64_t n, F finish, Stream stream) {
  SumDoublesKernel<<<1, kSumDoublesThreads, 0, RawStream(stream)>>>(x, n,
                                                                    finish);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_REDUCE_SUM_DOUBLES_CUH_
