#include "kernels/base/cuda.cuh"
#include "kernels/elementwise/copy_2d.h"

namespace mimo::kernels {

void Copy2dCuda(const Copy2dArgs& args, Stream stream) {
  if (args.rows == 0 || args.columns == 0) return;
  const int64_t size = SizeOf(args.dtype);
  MIMO_CUDA_CHECK(cudaMemcpy2DAsync(args.dst, args.dst_stride * size, args.src,
                                    args.src_stride * size, args.columns * size,
                                    args.rows, cudaMemcpyDeviceToDevice,
                                    RawStream(stream)));
}

}  // namespace mimo::kernels
