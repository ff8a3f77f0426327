#include <cuda_fp8.h>

#include <algorithm>

#include "kernels/base/cuda.cuh"
#include "kernels/base/float8.h"
#include "kernels/quantise/quantise.h"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksOfSm = 8;
constexpr int kTile = 64;   // rows and columns that a block transposes
constexpr int kGroup = 16;  // codes of one access

// Makes *amax, which holds the bits of a size, that of the largest |x| too: the
// order of the bits is that of sizes, behind it NaNs. A maximum is the same in
// any order.
template <typename T>
__global__ void AmaxKernel(const T* x, int64_t size, uint32_t* amax) {
  constexpr int kWidth = kVector<T>;
  __shared__ uint32_t of_block;
  if (threadIdx.x == 0) of_block = 0;
  __syncthreads();
  uint32_t most = 0;
  const int64_t stride = int64_t{gridDim.x} * kThreads * kWidth;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
       i < size; i += stride) {
    float values[kWidth];
    Load<kWidth>(x + i, values);
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      most = max(most, __float_as_uint(values[k]) & 0x7fffffff);
  }
  most = __reduce_max_sync(0xffffffff, most);
  if (threadIdx.x % kWarp == 0) atomicMax(&of_block, most);
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(amax, of_block);
}

template <__nv_fp8_interpretation_t kCode>
__device__ float FactorOf(float* scale) {
  const float s =
      QuantisationFactor(scale[1], kCode == __NV_E4M3 ? Float8E4M3::kLargest
                                                      : Float8E5M2::kLargest);
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) scale[0] = 1 / s;
  return s;
}

// kGroup codes a thread.
template <typename T, __nv_fp8_interpretation_t kCode>
__global__ void CodesKernel(const T* x, uint8_t* codes, float* scale,
                            int64_t size) {
  constexpr int kWidth = kVector<T>;
  const float s = FactorOf<kCode>(scale);
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kGroup;
  if (first >= size) return;
  float values[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; k += kWidth) {
    Load<kWidth>(x + first + k, reinterpret_cast<float(&)[kWidth]>(values[k]));
  }
  uint4 out;
  auto* pairs = reinterpret_cast<__nv_fp8x2_storage_t*>(&out);
#pragma unroll
  for (int k = 0; k < kGroup; k += 2) {
    pairs[k / 2] = __nv_cvt_float2_to_fp8x2(
        make_float2(values[k] * s, values[k + 1] * s), __NV_SATFINITE, kCode);
  }
  *reinterpret_cast<uint4*>(codes + first) = out;
}

// A tile a block, by way of shared memory. Its rows there are a word longer
// than a tile's, so that a warp's writes fall on other banks.
template <typename T, __nv_fp8_interpretation_t kCode>
__global__ void TransposedCodesKernel(const T* x, uint8_t* codes, float* scale,
                                      int64_t rows, int64_t columns) {
  constexpr int kWidth = kVector<T>;
  constexpr int kThreadsOfRow = kTile / kWidth;
  __shared__ __align__(16) uint8_t tile[kTile][kTile + 4];  // [column][row]
  const float s = FactorOf<kCode>(scale);
  const int64_t first_row = int64_t{blockIdx.y} * kTile;
  const int64_t first_column = int64_t{blockIdx.x} * kTile;
  const int column = threadIdx.x % kThreadsOfRow * kWidth;
  if (first_column + column < columns) {
    for (int row = threadIdx.x / kThreadsOfRow;
         row < kTile && first_row + row < rows;
         row += kThreads / kThreadsOfRow) {
      float values[kWidth];
      Load<kWidth>(x + (first_row + row) * columns + first_column + column,
                   values);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        tile[column + k][row] =
            __nv_cvt_float_to_fp8(values[k] * s, __NV_SATFINITE, kCode);
      }
    }
  }
  __syncthreads();
  static_assert(kThreads * kGroup == kTile * kTile);
  const int out_row = threadIdx.x / (kTile / kGroup);
  const int group = threadIdx.x % (kTile / kGroup) * kGroup;
  if (first_column + out_row >= columns || first_row + group >= rows) return;
  const auto* words = reinterpret_cast<const uint32_t*>(&tile[out_row][group]);
  *reinterpret_cast<uint4*>(codes + (first_column + out_row) * rows +
                            first_row + group) =
      make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T, __nv_fp8_interpretation_t kCode>
void Launch(const QuantiseArgs& args, cudaStream_t stream) {
  const int64_t size = args.rows * args.columns;
  const T* x = static_cast<const T*>(args.x);
  uint8_t* codes = static_cast<uint8_t*>(args.codes);
  MIMO_CUDA_CHECK(cudaMemsetAsync(args.scale + 1, 0, sizeof(float), stream));
  // One block at least, to write the scale.
  const auto blocks = [&](int64_t elements) {
    return std::max<int64_t>(CeilDiv(size, elements * kThreads), 1);
  };
  AmaxKernel<<<std::min<int64_t>(blocks(kGroup), kBlocksOfSm * NumSms()),
               kThreads, 0, stream>>>(
      x, size, reinterpret_cast<uint32_t*>(args.scale + 1));
  if (args.transpose) {
    const dim3 tiles(std::max<int64_t>(CeilDiv(args.columns, kTile), 1),
                     std::max<int64_t>(CeilDiv(args.rows, kTile), 1));
    TransposedCodesKernel<T, kCode><<<tiles, kThreads, 0, stream>>>(
        x, codes, args.scale, args.rows, args.columns);
  } else {
    CodesKernel<T, kCode>
        <<<blocks(kGroup), kThreads, 0, stream>>>(x, codes, args.scale, size);
  }
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void QuantiseCuda(const QuantiseArgs& args, Stream stream) {
  Check(args);
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    if (args.code_dtype == DType::kFloat8E4M3) {
      Launch<T, __NV_E4M3>(args, RawStream(stream));
    } else {
      Launch<T, __NV_E5M2>(args, RawStream(stream));
    }
  });
}

}  // namespace mimo::kernels
