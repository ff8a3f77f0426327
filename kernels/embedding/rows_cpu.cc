#include <algorithm>

#include "kernels/base/parallel.h"
#include "kernels/embedding/rows.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {
namespace {

template <typename T>
void Gather(const GatherRowsArgs& args) {
  const int64_t hidden = args.hidden;
  const T* table = static_cast<const T*>(args.table);
  ParallelFor(args.rows, RowGrain(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = args.index[i];
      CHECK_LT(row, args.table_rows) << "GatherRows: index[" << i << "]";
      T* out = static_cast<T*>(args.out) + i * hidden;
      if (row < 0) {
        if (!args.accumulate) std::fill_n(out, hidden, T{0});
      } else if (!args.accumulate) {
        std::copy_n(table + row * hidden, hidden, out);
      } else {
        const T* in = table + row * hidden;
#pragma omp simd
        for (int64_t h = 0; h < hidden; ++h) out[h] += in[h];
      }
    }
  });
}

// Threads share out columns, each going over all rows in order.
template <typename T>
void ScatterAdd(const ScatterAddRowsArgs& args) {
  constexpr int64_t kBlock = 64;  // columns: some cache lines
  const int64_t hidden = args.hidden;
  const T* rows = static_cast<const T*>(args.rows_in);
  T* table = static_cast<T*>(args.table);
  if (args.beta == 0) {
    ParallelFor(args.table_rows, RowGrain(hidden),
                [&](int64_t begin, int64_t end) {
                  std::fill(table + begin * hidden, table + end * hidden, T{0});
                });
  }
  for (int64_t i = 0; i < args.rows; ++i) {
    CHECK_LT(args.index[i], args.table_rows)
        << "ScatterAddRows: index[" << i << "]";
  }
  ParallelFor((hidden + kBlock - 1) / kBlock, RowGrain(args.rows * kBlock),
              [&](int64_t begin, int64_t end) {
                const int64_t first = begin * kBlock;
                const int64_t last = std::min(hidden, end * kBlock);
                for (int64_t i = 0; i < args.rows; ++i) {
                  if (args.index[i] < 0) continue;
                  const T* in = rows + i * hidden;
                  T* out = table + args.index[i] * hidden;
#pragma omp simd
                  for (int64_t h = first; h < last; ++h) out[h] += in[h];
                }
              });
}

}  // namespace

void GatherRowsCpu(const GatherRowsArgs& args) {
  CHECK_GE(args.rows, 0);
  CHECK_GE(args.table_rows, 0);
  CHECK_GT(args.hidden, 0);
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Gather<T>(args); });
}

void ScatterAddRowsCpu(const ScatterAddRowsArgs& args) {
  CHECK_GE(args.rows, 0);
  CHECK_GE(args.table_rows, 0);
  CHECK_GT(args.hidden, 0);
  CHECK(args.beta == 0 || args.beta == 1) << args.beta;
  CHECK(args.table_dtype == args.dtype ||
        args.table_dtype == AccumulatorOf(args.dtype))
      << "ScatterAddRows: rows " << Name(args.dtype) << ", table "
      << Name(args.table_dtype);
  DispatchCpuFloat(args.dtype, [&]<typename T>() { ScatterAdd<T>(args); });
}

void IndexOfPartCpu(const IndexOfPartArgs& args) {
  for (int64_t i = 0; i < args.rows; ++i) {
    const int64_t row = args.index[i] - args.begin;
    args.out[i] = 0 <= row && row < args.table_rows ? row : -1;
  }
}

// A GPU's: two words to a row, the rows sorted by index.
int64_t ScatterAddRowsWorkspaceBytes(int64_t rows, bool unique, Device device) {
  if (device == Device::kCpu || unique) return 0;
  return rows * 2 * static_cast<int64_t>(sizeof(int32_t));
}

}  // namespace mimo::kernels
