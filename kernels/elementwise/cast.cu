#include "kernels/base/cuda.cuh"
#include "kernels/elementwise/cast.h"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 256;

// kWidth elements a thread: the narrower dtype's vector, or one.
template <typename Src, typename Dst, int kWidth>
__global__ void CastKernel(const Src* src, Dst* dst, int64_t size) {
  constexpr int kSrcWidth = kWidth == 1 ? 1 : kVector<Src>;
  constexpr int kDstWidth = kWidth == 1 ? 1 : kVector<Dst>;
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (first >= size) return;
  float values[kWidth];
#pragma unroll
  for (int k = 0; k < kWidth; k += kSrcWidth) {
    Load<kSrcWidth>(src + first + k,
                    reinterpret_cast<float(&)[kSrcWidth]>(values[k]));
  }
#pragma unroll
  for (int k = 0; k < kWidth; k += kDstWidth) {
    Store<kDstWidth>(dst + first + k,
                     reinterpret_cast<float(&)[kDstWidth]>(values[k]));
  }
}

}  // namespace

void CastCuda(const CastArgs& args, Stream stream) {
  if (args.size == 0) return;
  DispatchCudaFloat(args.src_dtype, [&]<typename Src>() {
    DispatchCudaFloat(args.dst_dtype, [&]<typename Dst>() {
      const auto launch = [&]<int kWidth>() {
        CastKernel<Src, Dst, kWidth>
            <<<CeilDiv(args.size / kWidth, kThreads), kThreads, 0,
               RawStream(stream)>>>(static_cast<const Src*>(args.src),
                                    static_cast<Dst*>(args.dst), args.size);
      };
      using Narrow = std::conditional_t<sizeof(Src) < sizeof(Dst), Src, Dst>;
      DispatchWidth<Narrow>(args.size, {args.src, args.dst}, launch);
    });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
