#include "kernels/base/parallel.h"
#include "kernels/elementwise/add.h"

namespace mimo::kernels {

void AddCpu(const AddArgs& args) {
  DispatchCpuFloat(args.dtype, [&]<typename T>() {
    const T* a = static_cast<const T*>(args.a);
    const T* b = static_cast<const T*>(args.b);
    T* out = static_cast<T*>(args.out);
    ParallelFor(args.size, 1 << 15, [&](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) out[i] = a[i] + b[i];
    });
  });
}

}  // namespace mimo::kernels
