// Quantise: tokens of a 7B's hidden and feed-forward size, and its weights.
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/quantise/quantise.h"
#include "kernels/testing/bench_floor.h"
#include "kernels/testing/cuda_bench.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

// Arguments: rows, columns, whether to transpose.
void QuantiseCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t rows = state.range(0), columns = state.range(1);
  const QuantiseArgs args = {
      .x = gpu.Random(DType::kBFloat16, rows * columns),
      .codes = gpu.Allocate(rows * columns),
      .scale = static_cast<float*>(gpu.Allocate(2 * sizeof(float))),
      .transpose = state.range(2) != 0,
      .rows = rows,
      .columns = columns,
      .dtype = DType::kBFloat16,
      .code_dtype = DType::kFloat8E4M3};
  gpu.Run([&](Stream stream) { Quantise(args, stream); });
  gpu.ReportBytes(5.0 * rows * columns);
}

void QuantiseCpu(benchmark::State& state) {
  const int64_t rows = state.range(0), columns = state.range(1);
  const std::vector<float> x = RandomVector<float>(rows * columns, 1);
  std::vector<char> codes(rows * columns);
  float scale[2];
  const QuantiseArgs args = {.x = x.data(),
                             .codes = codes.data(),
                             .scale = scale,
                             .transpose = state.range(2) != 0,
                             .rows = rows,
                             .columns = columns,
                             .dtype = DType::kFloat32,
                             .code_dtype = DType::kFloat8E4M3};
  for (auto _ : state) Quantise(args, {});
  ReportBytes(state, 9.0 * rows * columns);
}

BENCHMARK(QuantiseCuda)
    ->Args({8192, 4096, 0})
    ->Args({8192, 11008, 0})
    ->Args({22016, 4096, 0})
    ->Args({22016, 4096, 1})
    ->UseManualTime();
BENCHMARK(QuantiseCpu)->Args({1200, 512, 0})->Args({512, 128, 1});

}  // namespace
}  // namespace mimo::kernels
