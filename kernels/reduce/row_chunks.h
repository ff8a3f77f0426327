// Work shared out by rows: how many to a thread, and sums over rows whose
// result does not depend on the threads. The rows [0, T) are cut into at most
// 64 chunks by a rule of T alone; each chunk sums into a partial row of its own
// and the partial rows are added in order.
#ifndef MIMO_KERNELS_REDUCE_ROW_CHUNKS_H_
#define MIMO_KERNELS_REDUCE_ROW_CHUNKS_H_

#include <algorithm>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "kernels/base/parallel.h"

namespace mimo::kernels {

// Elements below which a second thread costs more than it brings: a fork and
// join is some microseconds, as is a pass over this many.
inline constexpr int64_t kGrainElements = 1 << 14;

// The grain of ParallelFor over rows of `width` elements.
inline int64_t RowGrain(int64_t width) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, width));
}

// A GPU's partial rows of a sum over rows: one for each of the blocks that
// share the rows out, two on each of Hopper's 132 multiprocessors.
inline constexpr int64_t kCudaPartialRows = 264;

inline int64_t RowsPerChunk(int64_t rows) {
  return std::max<int64_t>(16, (rows + 63) / 64);
}
inline int64_t RowChunks(int64_t rows) {
  const int64_t size = RowsPerChunk(rows);
  return (rows + size - 1) / size;
}

// body(chunk, begin, end) for every chunk of `rows` rows of `width` elements.
inline void ForRowChunks(
    int64_t rows, int64_t width,
    absl::FunctionRef<void(int64_t chunk, int64_t begin, int64_t end)> body) {
  const int64_t size = RowsPerChunk(rows);
  ParallelFor(RowChunks(rows), RowGrain(size * width),
              [&](int64_t begin, int64_t end) {
                for (int64_t c = begin; c < end; ++c)
                  body(c, c * size, std::min(rows, (c + 1) * size));
              });
}

// out[h] = beta * out[h] + sum_c partial[c, h]; beta = 0 does not read out.
template <typename T>
void SumRowChunks(const T* partial, int64_t chunks, int64_t width, float beta,
                  T* out) {
  constexpr int64_t kBlock = 256;
  const int64_t blocks = (width + kBlock - 1) / kBlock;
  ParallelFor(blocks, RowGrain(chunks * kBlock),
              [&](int64_t begin, int64_t end) {
                const int64_t last = std::min(width, end * kBlock);
                for (int64_t h = begin * kBlock; h < last; ++h)
                  out[h] = beta == 0 ? T{0} : static_cast<T>(beta) * out[h];
                for (int64_t c = 0; c < chunks; ++c) {
                  const T* row = partial + c * width;
#pragma omp simd
                  for (int64_t h = begin * kBlock; h < last; ++h)
                    out[h] += row[h];
                }
              });
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_REDUCE_ROW_CHUNKS_H_
