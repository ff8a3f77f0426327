#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/optim/blocks.h"
#include "kernels/optim/global_norm.h"

namespace mimo::kernels {

void GlobalNorm(const GlobalNormArgs& args, Stream) {
  CHECK_GE(args.max_norm, 0);
  std::vector<double> partials(CountBlocks(args.tensors));
  DispatchCpuFloat(args.dtype, [&]<typename T>() {
    ForBlocks(args.tensors, [&](const NormTensor& tensor, int64_t block,
                                int64_t begin, int64_t end) {
      const T* x = static_cast<const T*>(tensor.x);
      double squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t i = begin; i < end; ++i) {
        const double v = static_cast<double>(x[i]);
        squares += v * v;
      }
      partials[block] = squares;
    });
  });
  double squares = 0;
  for (double partial : partials) squares += partial;
  *args.norm = std::sqrt(squares);
  *args.scale = args.max_norm == 0
                    ? 1
                    : std::min(1.0, args.max_norm / (*args.norm + 1e-6));
}

}  // namespace mimo::kernels
