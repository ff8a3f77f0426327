#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/merge_attention.h"
#include "kernels/base/parallel.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {
namespace {

template <typename T>
void Merge(const MergeAttentionArgs& args) {
  const int64_t dim = args.head_dim, width = args.heads * dim;
  // The rows of one head of one sample.
  const auto merge = [&](int64_t b, int64_t n) {
    int64_t first_row = b * args.seq, rows = args.seq;
    if (args.cu_seqlens != nullptr) {
      first_row = args.cu_seqlens[b];
      rows = args.cu_seqlens[b + 1] - first_row;
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (b * args.heads + n) * args.seq + i;
      const int64_t column = (first_row + i) * width + n * dim;
      T& lse = static_cast<T*>(args.lse)[at];
      const T lse_b = static_cast<const T*>(args.lse_b)[at];
      T* out = static_cast<T*>(args.out) + column;
      const T* out_b = static_cast<const T*>(args.out_b) + column;
      if (args.first) {
        lse = lse_b;
        std::copy_n(out_b, dim, out);
        continue;
      }
      const T max = std::max(lse, lse_b);
      if (max == -std::numeric_limits<T>::infinity()) continue;
      const T sum = max + std::log(std::exp(lse - max) + std::exp(lse_b - max));
      const T a = std::exp(lse - sum), c = std::exp(lse_b - sum);
      for (int64_t d = 0; d < dim; ++d) out[d] = a * out[d] + c * out_b[d];
      lse = sum;
    }
  };
  ParallelFor(args.batch * args.heads, RowGrain(args.seq * dim),
              [&](int64_t begin, int64_t end) {
                for (int64_t task = begin; task < end; ++task)
                  merge(task / args.heads, task % args.heads);
              });
}

}  // namespace

void MergeAttentionCpu(const MergeAttentionArgs& args) {
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Merge<T>(args); });
}

}  // namespace mimo::kernels
