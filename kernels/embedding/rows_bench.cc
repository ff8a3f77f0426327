#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/embedding/rows.h"
#include "kernels/testing/bench_floor.h"

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

}  // namespace
}  // namespace mimo::kernels
