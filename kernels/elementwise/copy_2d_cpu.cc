#include <cstring>

#include "kernels/base/parallel.h"
#include "kernels/elementwise/copy_2d.h"

namespace mimo::kernels {

void Copy2dCpu(const Copy2dArgs& args) {
  const int64_t size = SizeOf(args.dtype);
  const int64_t row_bytes = args.columns * size;
  if (row_bytes == 0) return;
  const char* src = static_cast<const char*>(args.src);
  char* dst = static_cast<char*>(args.dst);
  ParallelFor(args.rows, 1 + (1 << 17) / row_bytes,
              [&](int64_t begin, int64_t end) {
                for (int64_t r = begin; r < end; ++r) {
                  std::memcpy(dst + r * args.dst_stride * size,
                              src + r * args.src_stride * size, row_bytes);
                }
              });
}

}  // namespace mimo::kernels
