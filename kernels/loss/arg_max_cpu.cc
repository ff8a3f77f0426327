#include <limits>

#include "kernels/base/parallel.h"
#include "kernels/loss/arg_max.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {

void ArgMaxCpu(const ArgMaxArgs& args) {
  DispatchCpuFloat(args.dtype, [&]<typename T>() {
    ParallelFor(
        args.rows, RowGrain(args.vocab), [&](int64_t begin, int64_t end) {
          for (int64_t t = begin; t < end; ++t) {
            const T* z = static_cast<const T*>(args.logits) + t * args.vocab;
            T top = -std::numeric_limits<T>::infinity();
            int32_t token = -1;
            for (int64_t v = 0; v < args.vocab; ++v) {
              if (!(z[v] > top)) continue;
              top = z[v];
              token = static_cast<int32_t>(v);
            }
            args.tokens[t] = token;
          }
        });
  });
}

}  // namespace mimo::kernels
