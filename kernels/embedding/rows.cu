#include <algorithm>
#include <type_traits>

#include "absl/log/check.h"
#include "kernels/base/cuda.cuh"
#include "kernels/embedding/rows.h"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 256;

// A block has blockDim.y rows, blockDim.x threads to each, which take
// `width` columns at a time; several blocks share long rows out.
struct Shape {
  dim3 grid, block;
};
Shape ShapeOf(int64_t rows, int64_t hidden, int width, int most_blocks_a_row) {
  const int64_t pieces = CeilDiv(hidden, width);
  int x = kWarp;
  while (x < kThreads && x < pieces) x *= 2;
  const int64_t y = kThreads / x;
  const int64_t blocks_a_row =
      std::min<int64_t>(CeilDiv(pieces, x), most_blocks_a_row);
  return {dim3(CeilDiv(rows, y), blocks_a_row), dim3(x, y)};
}

// body(h) for the columns of this thread.
template <int kWidth, typename F>
__device__ void ForColumns(int64_t hidden, F&& body) {
  const int64_t step = int64_t{blockDim.x} * gridDim.y * kWidth;
#pragma unroll 2
  for (int64_t h = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kWidth;
       h < hidden; h += step)
    body(h);
}

__device__ int64_t CheckedIndex(int32_t index, int64_t table_rows) {
  if (index >= table_rows) __trap();
  return index;
}

template <typename T, int kWidth>
__global__ void GatherKernel(const T* table, const int32_t* index, T* out,
                             bool accumulate, int64_t rows, int64_t table_rows,
                             int64_t hidden) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (i >= rows) return;
  const int64_t row = CheckedIndex(index[i], table_rows);
  if (row < 0 && accumulate) return;
  ForColumns<kWidth>(hidden, [&](int64_t h) {
    float x[kWidth] = {};
    if (row >= 0) Load<kWidth>(table + row * hidden + h, x);
    if (accumulate) {
      float old[kWidth];
      Load<kWidth>(out + i * hidden + h, old);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) x[k] += old[k];
    }
    Store<kWidth>(out + i * hidden + h, x);
  });
}

// kWidth elements of a table, which may be wider than the rows: float to their
// bfloat16.
template <int kWidth, typename T>
__device__ void LoadWide(const T* from, float (&to)[kWidth]) {
  if constexpr (kWidth <= kVector<T>) {
    Load<kWidth>(from, to);
  } else {
    float(&halves)[2][kVector<T>] =
        reinterpret_cast<float(&)[2][kVector<T>]>(to);
    Load<kVector<T>>(from, halves[0]);
    Load<kVector<T>>(from + kVector<T>, halves[1]);
  }
}
template <int kWidth, typename T>
__device__ void StoreWide(T* to, const float (&from)[kWidth]) {
  if constexpr (kWidth <= kVector<T>) {
    Store<kWidth>(to, from);
  } else {
    const float(&halves)[2][kVector<T>] =
        reinterpret_cast<const float(&)[2][kVector<T>]>(from);
    Store<kVector<T>>(to, halves[0]);
    Store<kVector<T>>(to + kVector<T>, halves[1]);
  }
}

// Row i of the input at its place by (index, i), negative indices last.
struct Entry {
  int32_t index, row;
};

// A warp counts what comes before each of kMine rows: T^2 comparisons, which
// for the tokens of a batch (some ten thousand) take less time than a radix
// sort's launches.
constexpr int kMine = 4;
__device__ uint32_t SortKey(int32_t index) {
  return min(static_cast<uint32_t>(index), 0x80000000);
}
__global__ void SortKernel(const int32_t* index, int64_t rows, Entry* sorted) {
  const int lane = threadIdx.x % kWarp;
  const int64_t first =
      (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp * kMine;
  if (first >= rows) return;
  const int64_t last = min(first + kMine, rows);
  uint32_t mine[kMine];
  int before[kMine] = {};
#pragma unroll
  for (int k = 0; k < kMine; ++k)
    mine[k] = SortKey(index[min(first + k, rows - 1)]);
#pragma unroll 4
  for (int64_t j = lane; j < first; j += kWarp) {
    const uint32_t other = SortKey(index[j]);
#pragma unroll
    for (int k = 0; k < kMine; ++k) before[k] += other <= mine[k];
  }
#pragma unroll 4
  for (int64_t j = last + lane; j < rows; j += kWarp) {
    const uint32_t other = SortKey(index[j]);
#pragma unroll
    for (int k = 0; k < kMine; ++k) before[k] += other < mine[k];
  }
#pragma unroll
  for (int k = 0; k < kMine; ++k) {
    before[k] = __reduce_add_sync(0xffffffff, before[k]);
#pragma unroll
    for (int j = 0; j < kMine; ++j)
      before[k] += first + j < last &&
                   (mine[j] < mine[k] || (mine[j] == mine[k] && j < k));
    if (lane == k && first + k < last) {
      sorted[before[k]] = {index[first + k], static_cast<int32_t>(first + k)};
    }
  }
}

// How many entries from p on have the index of entry p; the whole warp asks.
__device__ int64_t RunLength(const Entry* sorted, int64_t p, int64_t rows) {
  const int32_t index = sorted[p].index;
  for (int64_t q = p;; q += kWarp) {
    const int64_t mine = q + threadIdx.x % kWarp;
    const uint32_t same =
        __ballot_sync(0xffffffff, mine < rows && sorted[mine].index == index);
    if (same != 0xffffffff) return q - p + __popc(same);
  }
}

// Entry p adds the rows of its index if it is the first. Without `sorted` (no
// index twice) it is row p alone.
template <typename T, typename Table, int kWidth>
__global__ void ScatterAddKernel(const T* rows_in, const int32_t* index,
                                 const Entry* sorted, Table* table, bool add,
                                 int64_t rows, int64_t table_rows,
                                 int64_t hidden) {
  const int64_t p = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (p >= rows) return;
  const Entry first =
      sorted == nullptr ? Entry{index[p], static_cast<int32_t>(p)} : sorted[p];
  if (first.index < 0) return;
  if (sorted != nullptr && p > 0 && sorted[p - 1].index == first.index) return;
  const int64_t count = sorted == nullptr ? 1 : RunLength(sorted, p, rows);
  Table* out = table + CheckedIndex(first.index, table_rows) * hidden;
  ForColumns<kWidth>(hidden, [&](int64_t h) {
    float sum[kWidth] = {}, x[kWidth];
    if (add) LoadWide<kWidth>(out + h, sum);
    Load<kWidth>(rows_in + first.row * hidden + h, x);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum[k] += x[k];
#pragma unroll 8
    for (int64_t q = 1; q < count; ++q) {
      Load<kWidth>(rows_in + sorted[p + q].row * hidden + h, x);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] += x[k];
    }
    StoreWide<kWidth>(out + h, sum);
  });
}

template <typename T, typename Table>
void ScatterAdd(const ScatterAddRowsArgs& args, Stream stream) {
  Entry* sorted = nullptr;
  if (!args.unique) {
    CHECK(args.workspace != nullptr);
    sorted = static_cast<Entry*>(args.workspace);
    SortKernel<<<CeilDiv(args.rows, kThreads / kWarp * kMine), kThreads, 0,
                 RawStream(stream)>>>(args.index, args.rows, sorted);
    MIMO_CUDA_CHECK(cudaGetLastError());
  }
  DispatchWidth<T>(args.hidden, {args.rows_in, args.table}, [&]<int kWidth>() {
    const Shape shape = ShapeOf(args.rows, args.hidden, kWidth, 1 << 15);
    ScatterAddKernel<T, Table, kWidth>
        <<<shape.grid, shape.block, 0, RawStream(stream)>>>(
            static_cast<const T*>(args.rows_in), args.index, sorted,
            static_cast<Table*>(args.table), args.beta != 0, args.rows,
            args.table_rows, args.hidden);
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

__global__ void IndexOfPartKernel(IndexOfPartArgs args) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= args.rows) return;
  const int64_t row = args.index[i] - args.begin;
  args.out[i] = 0 <= row && row < args.table_rows ? row : -1;
}

}  // namespace

void IndexOfPartCuda(const IndexOfPartArgs& args, Stream stream) {
  if (args.rows == 0) return;
  IndexOfPartKernel<<<CeilDiv(args.rows, kThreads), kThreads, 0,
                      RawStream(stream)>>>(args);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

void GatherRowsCuda(const GatherRowsArgs& args, Stream stream) {
  CHECK_GT(args.hidden, 0);
  if (args.rows == 0) return;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    DispatchWidth<T>(args.hidden, {args.table, args.out}, [&]<int kWidth>() {
      const Shape shape = ShapeOf(args.rows, args.hidden, kWidth, 1);
      GatherKernel<T, kWidth>
          <<<shape.grid, shape.block, 0, RawStream(stream)>>>(
              static_cast<const T*>(args.table), args.index,
              static_cast<T*>(args.out), args.accumulate, args.rows,
              args.table_rows, args.hidden);
    });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

void ScatterAddRowsCuda(const ScatterAddRowsArgs& args, Stream stream) {
  CHECK_GT(args.hidden, 0);
  CHECK(args.beta == 0 || args.beta == 1) << args.beta;
  CHECK(args.table_dtype == args.dtype ||
        args.table_dtype == AccumulatorOf(args.dtype))
      << "ScatterAddRows: rows " << Name(args.dtype) << ", table "
      << Name(args.table_dtype);
  if (args.beta == 0) {
    MIMO_CUDA_CHECK(cudaMemsetAsync(
        args.table, 0, args.table_rows * args.hidden * SizeOf(args.table_dtype),
        RawStream(stream)));
  }
  if (args.rows == 0) return;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    if (args.table_dtype == args.dtype) {
      ScatterAdd<T, T>(args, stream);
    } else {
      ScatterAdd<T, float>(args, stream);
    }
  });
}

}  // namespace mimo::kernels
