// What the kernels in .cu files share: dtypes, 16-byte accesses, sums.
#ifndef MIMO_KERNELS_BASE_CUDA_CUH_
#define MIMO_KERNELS_BASE_CUDA_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "absl/log/log.h"
#include "kernels/base/cuda_check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo {

// Calls f.template operator()<T>() with the GPU type of a floating `dtype`.
template <typename F>
void DispatchCudaFloat(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f.template operator()<float>();
    case DType::kBFloat16:
      return f.template operator()<__nv_bfloat16>();
    default:
      LOG(FATAL) << "a GPU computes in float32 or bfloat16, not "
                 << Name(dtype);
  }
}

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Multiprocessors of the current device; asked once.
inline int NumSms() {
  static const int count = [] {
    int value = 0;
    MIMO_CUDA_CHECK(
        cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0));
    return value;
  }();
  return count;
}

inline constexpr int kWarp = 32;

// Elements of T in one 16-byte access: 4 float or 8 bfloat16.
template <typename T>
inline constexpr int kVector = 16 / sizeof(T);

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T>
__device__ inline T FromFloat(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

// kWidth elements as floats and back, in one access: kWidth is 1, or what is 16
// or 8 bytes, at an address aligned so.
template <int kWidth, typename T>
using Access = std::conditional_t<kWidth * sizeof(T) == 16, uint4, uint2>;
template <int kWidth, typename T>
__device__ inline void Load(const T* from, float (&to)[kWidth]) {
  if constexpr (kWidth == 1) {
    to[0] = ToFloat(*from);
  } else {
    static_assert(kWidth * sizeof(T) == sizeof(Access<kWidth, T>));
    const auto raw = *reinterpret_cast<const Access<kWidth, T>*>(from);
    const T* values = reinterpret_cast<const T*>(&raw);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) to[i] = ToFloat(values[i]);
  }
}
template <int kWidth, typename T>
__device__ inline void Store(T* to, const float (&from)[kWidth]) {
  if constexpr (kWidth == 1) {
    *to = FromFloat<T>(from[0]);
  } else {
    static_assert(kWidth * sizeof(T) == sizeof(Access<kWidth, T>));
    Access<kWidth, T> raw;
    T* values = reinterpret_cast<T*>(&raw);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = FromFloat<T>(from[i]);
    *reinterpret_cast<Access<kWidth, T>*>(to) = raw;
  }
}

// Calls f.template operator()<kWidth>() with kVector<T> when rows of `columns`
// elements at each of the pointers can be read so (null ones do not count),
// else with 1.
template <typename T, typename F>
void DispatchWidth(int64_t columns, std::initializer_list<const void*> rows,
                   F&& f) {
  bool aligned = columns % kVector<T> == 0;
  for (const void* row : rows)
    aligned = aligned && reinterpret_cast<uintptr_t>(row) % 16 == 0;
  if (aligned) {
    f.template operator()<kVector<T>>();
  } else {
    f.template operator()<1>();
  }
}

// Every lane gets the sum, or the largest, over the warp; a fixed order.
__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2)
    x += __shfl_xor_sync(0xffffffff, x, lane);
  return x;
}
__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, lane));
  return x;
}

// Every thread gets the sum over a block of kThreads threads. Has barriers, so
// all threads call it, and its shared memory may be used again at once.
template <int kThreads>
__device__ inline float BlockSum(float x) {
  static_assert(kThreads % kWarp == 0 && kThreads <= 1024);
  constexpr int kWarps = kThreads / kWarp;
  __shared__ float sums[kWarps];
  x = WarpSum(x);
  if constexpr (kWarps == 1) return x;
  __syncthreads();
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) x += sums[w];
  return x;
}

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_CUDA_CUH_
