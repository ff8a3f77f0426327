#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/optim/global_norm.h"
#include "kernels/testing/bench_floor.h"

namespace mimo::kernels {
namespace {

// Arguments: tensors, elements of each.
void Norm(benchmark::State& state) {
  const int64_t count = state.range(0), size = state.range(1);
  const std::vector<float> x(count * size, 1);
  std::vector<NormTensor> tensors;
  for (int64_t i = 0; i < count * size; i += size)
    tensors.push_back({&x[i], size});
  double norm, scale;
  for (auto _ : state) {
    GlobalNorm({.tensors = tensors,
                .max_norm = 1,
                .norm = &norm,
                .scale = &scale,
                .dtype = DType::kFloat32},
               Stream());
  }
  ReportBytes(state, 4.0 * count * size);
}

BENCHMARK(Norm)->Args({1, 1 << 25})->Args({300, 4096})->UseRealTime();

}  // namespace
}  // namespace mimo::kernels
