// SumRows: out[h] = beta * out[h] + sum_p partial[p, h], in the order of p: the
// end of a sum over tokens that blocks have shared out.
#ifndef MIMO_KERNELS_REDUCE_SUM_ROWS_CUH_
#define MIMO_KERNELS_REDUCE_SUM_ROWS_CUH_

#include "kernels/base/cuda.cuh"

namespace mimo::kernels {

// 32 columns a block; its 8 warps take every eighth row.
inline constexpr int kSumRowsWarps = 8;

static __global__ void SumRowsKernel(const float* partial, int64_t rows,
                                     int64_t columns, float beta, float* out) {
  __shared__ float sums[kSumRowsWarps][kWarp];
  const int64_t h = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  float sum = 0;
  if (h < columns) {
#pragma unroll 4
    for (int64_t p = threadIdx.y; p < rows; p += kSumRowsWarps)
      sum += partial[p * columns + h];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || h >= columns) return;
#pragma unroll
  for (int w = 1; w < kSumRowsWarps; ++w) sum += sums[w][threadIdx.x];
  out[h] = (beta == 0 ? 0 : beta * out[h]) + sum;
}

inline void SumRows(const float* partial, int64_t rows, int64_t columns,
                    float beta, float* out, Stream stream) {
  SumRowsKernel<<<CeilDiv(columns, kWarp), dim3(kWarp, kSumRowsWarps), 0,
                  RawStream(stream)>>>(partial, rows, columns, beta, out);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_REDUCE_SUM_ROWS_CUH_
