#include "kernels/base/cuda.cuh"
#include "kernels/elementwise/add.h"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 256;

template <typename T, int kWidth>
__global__ void AddKernel(const T* a, const T* b, T* out, int64_t size) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (i >= size) return;
  float sum[kWidth], other[kWidth];
  Load<kWidth>(a + i, sum);
  Load<kWidth>(b + i, other);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) sum[k] += other[k];
  Store<kWidth>(out + i, sum);
}

}  // namespace

void AddCuda(const AddArgs& args, Stream stream) {
  if (args.size == 0) return;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    DispatchWidth<T>(args.size, {args.a, args.b, args.out}, [&]<int kWidth>() {
      AddKernel<T, kWidth><<<CeilDiv(args.size / kWidth, kThreads), kThreads, 0,
                             RawStream(stream)>>>(
          static_cast<const T*>(args.a), static_cast<const T*>(args.b),
          static_cast<T*>(args.out), args.size);
    });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
