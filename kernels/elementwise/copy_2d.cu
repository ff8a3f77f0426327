#include <algorithm>

#include "kernels/base/cuda.cuh"
#include "kernels/elementwise/copy_2d.h"
#include "kernels/elementwise/copy_units.cuh"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 128;

// A Unit a thread; strides and columns in units.
template <typename Unit>
__global__ void CopyKernel(const Unit* src, int64_t src_stride, Unit* dst,
                           int64_t dst_stride, int64_t rows, int64_t columns) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= columns) return;
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y)
    dst[r * dst_stride + c] = src[r * src_stride + c];
}

}  // namespace

void Copy2dCuda(const Copy2dArgs& args, Stream stream) {
  if (args.rows == 0 || args.columns == 0) return;
  const int64_t size = SizeOf(args.dtype);
  const int64_t src_stride = args.src_stride * size;
  const int64_t dst_stride = args.dst_stride * size;
  const int64_t columns = args.columns * size;
  DispatchUnit({src_stride, dst_stride, columns}, {args.src, args.dst},
               [&]<typename Unit>() {
                 constexpr int64_t kUnit = sizeof(Unit);
                 const dim3 grid(CeilDiv(columns / kUnit, kThreads),
                                 std::min<int64_t>(args.rows, 65535));
                 CopyKernel<Unit><<<grid, kThreads, 0, RawStream(stream)>>>(
                     static_cast<const Unit*>(args.src), src_stride / kUnit,
                     static_cast<Unit*>(args.dst), dst_stride / kUnit,
                     args.rows, columns / kUnit);
               });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
