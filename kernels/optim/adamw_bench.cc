#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/optim/adamw.h"
#include "kernels/testing/bench_floor.h"

namespace mimo::kernels {
namespace {

// Arguments: tensors, elements of each.
void Step(benchmark::State& state) {
  const int64_t count = state.range(0), size = state.range(1);
  std::vector<float> param(count * size, 1), grad(count * size, 1);
  std::vector<float> exp_avg(count * size), exp_avg_sq(count * size);
  std::vector<AdamWTensor> tensors;
  for (int64_t i = 0; i < count * size; i += size) {
    tensors.push_back({.param = &param[i],
                       .grad = &grad[i],
                       .exp_avg = &exp_avg[i],
                       .exp_avg_sq = &exp_avg_sq[i],
                       .size = size,
                       .lr = 1e-3,
                       .weight_decay = 0.1});
  }
  const double scale = 1;
  for (auto _ : state) {
    AdamW({.tensors = tensors,
           .beta1 = 0.9,
           .beta2 = 0.95,
           .eps = 1e-8,
           .step = 1,
           .grad_scale = &scale,
           .dtype = DType::kFloat32},
          Stream());
  }
  ReportBytes(state, 28.0 * count * size);
}

BENCHMARK(Step)->Args({1, 1 << 24})->Args({300, 4096})->UseRealTime();

}  // namespace
}  // namespace mimo::kernels
