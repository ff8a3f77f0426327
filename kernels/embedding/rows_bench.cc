#include <algorithm>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/embedding/rows.h"
#include "kernels/testing/bench_floor.h"
#include "kernels/testing/cuda_bench.h"

namespace mimo::kernels {
namespace {

constexpr int64_t kTableRows = 8192;

// Every row of the table has its turn, far apart.
std::vector<int32_t> Index(int64_t rows) {
  std::vector<int32_t> index(rows);
  for (int64_t i = 0; i < rows; ++i)
    index[i] = static_cast<int32_t>(i * 4099 % kTableRows);
  return index;
}

// Arguments: T, H.
void Gather(benchmark::State& state) {
  const int64_t rows = state.range(0), hidden = state.range(1);
  const std::vector<float> table(kTableRows * hidden, 1);
  const std::vector<int32_t> index = Index(rows);
  std::vector<float> out(rows * hidden);
  for (auto _ : state) {
    GatherRows({.table = table.data(),
                .index = index.data(),
                .out = out.data(),
                .rows = rows,
                .table_rows = kTableRows,
                .hidden = hidden,
                .dtype = DType::kFloat32},
               Stream());
  }
  ReportBytes(state, 2.0 * sizeof(float) * rows * hidden);
}

void ScatterAdd(benchmark::State& state) {
  const int64_t rows = state.range(0), hidden = state.range(1);
  const std::vector<float> in(rows * hidden, 1);
  const std::vector<int32_t> index = Index(rows);
  std::vector<float> table(kTableRows * hidden);
  for (auto _ : state) {
    ScatterAddRows({.rows_in = in.data(),
                    .index = index.data(),
                    .table = table.data(),
                    .beta = 1,
                    .rows = rows,
                    .table_rows = kTableRows,
                    .hidden = hidden,
                    .dtype = DType::kFloat32,
                    .table_dtype = DType::kFloat32},
                   Stream());
  }
  ReportBytes(state, 3.0 * sizeof(float) * rows * hidden);
}

BENCHMARK(Gather)->Args({4096, 4096})->Args({64, 256})->UseRealTime();
BENCHMARK(ScatterAdd)->Args({4096, 4096})->Args({64, 256})->UseRealTime();

// bfloat16, rows of 4096. Scatter: `unique` into a bfloat16 table; else every
// index twice or more, into a main_grad.
void CudaGather(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t rows = state.range(0), hidden = 4096;
  const void* table = gpu.Random(DType::kBFloat16, kTableRows * hidden);
  void* out = gpu.Allocate(2 * rows * hidden);
  const int32_t* index = gpu.Copy(Index(rows));
  gpu.Run([&](Stream stream) {
    GatherRows({.table = table,
                .index = index,
                .out = out,
                .rows = rows,
                .table_rows = kTableRows,
                .hidden = hidden,
                .dtype = DType::kBFloat16},
               stream);
  });
  gpu.ReportBytes(2.0 * 2 * rows * hidden);
}
void CudaScatterAdd(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t rows = state.range(0), hidden = 4096;
  const bool unique = state.range(1) != 0;
  std::vector<int32_t> index = Index(rows);
  if (!unique) {
    for (int64_t i = 0; i < rows / 2; ++i) index[i + rows / 2] = index[i];
  }
  const DType table_dtype = unique ? DType::kBFloat16 : DType::kFloat32;
  const void* in = gpu.Random(DType::kBFloat16, rows * hidden);
  void* table = gpu.Random(table_dtype, kTableRows * hidden);
  void* workspace =
      gpu.Allocate(ScatterAddRowsWorkspaceBytes(rows, unique, Device::kCuda));
  const int32_t* index_on = gpu.Copy(index);
  gpu.Run([&](Stream stream) {
    ScatterAddRows({.rows_in = in,
                    .index = index_on,
                    .table = table,
                    .beta = 1,
                    .unique = unique,
                    .workspace = workspace,
                    .rows = rows,
                    .table_rows = kTableRows,
                    .hidden = hidden,
                    .dtype = DType::kBFloat16,
                    .table_dtype = table_dtype},
                   stream);
  });
  const int64_t written = unique ? rows : std::min(rows / 2, kTableRows);
  gpu.ReportBytes(2.0 * (rows + written * SizeOf(table_dtype)) * hidden);
}
BENCHMARK(CudaGather)
    ->Arg(4096)
    ->Arg(8192)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(CudaScatterAdd)
    ->ArgNames({"T", "unique"})
    ->ArgsProduct({{4096, 8192}, {0, 1}})
    ->Args({32768, 0})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace mimo::kernels
