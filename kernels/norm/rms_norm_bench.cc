#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/testing/bench_floor.h"

namespace mimo::kernels {
namespace {

// Arguments: T, H, and forward with a residual or backward into an accumulating
// dx (four passes over memory) or without (two and three).
void Forward(benchmark::State& state) {
  const int64_t tokens = state.range(0), hidden = state.range(1);
  const bool residual = state.range(2) != 0;
  const std::vector<float> x(tokens * hidden, 1), weight(hidden, 1);
  std::vector<float> sum(tokens * hidden), y(tokens * hidden), rstd(tokens);
  for (auto _ : state) {
    RmsNormForward({.x = x.data(),
                    .residual = residual ? x.data() : nullptr,
                    .weight = weight.data(),
                    .sum = residual ? sum.data() : nullptr,
                    .y = y.data(),
                    .rstd = rstd.data(),
                    .tokens = tokens,
                    .hidden = hidden,
                    .eps = 1e-5,
                    .dtype = DType::kFloat32},
                   Stream());
  }
  ReportBytes(state, (residual ? 4.0 : 2.0) * sizeof(float) * tokens * hidden);
}

void Backward(benchmark::State& state) {
  const int64_t tokens = state.range(0), hidden = state.range(1);
  const bool accumulate = state.range(2) != 0;
  const std::vector<float> x(tokens * hidden, 1), weight(hidden, 1);
  const std::vector<float> dy(tokens * hidden, 1), rstd(tokens, 1);
  std::vector<float> dx(tokens * hidden), dweight(hidden);
  std::vector<char> workspace(RmsNormBackwardWorkspaceBytes(
      tokens, hidden, DType::kFloat32, Device::kCpu));
  for (auto _ : state) {
    RmsNormBackward({.x = x.data(),
                     .weight = weight.data(),
                     .rstd = rstd.data(),
                     .dy = dy.data(),
                     .dx = dx.data(),
                     .accumulate_dx = accumulate,
                     .dweight = dweight.data(),
                     .dweight_beta = 0,
                     .workspace = workspace.data(),
                     .tokens = tokens,
                     .hidden = hidden,
                     .dtype = DType::kFloat32},
                    Stream());
  }
  ReportBytes(state,
              (accumulate ? 4.0 : 3.0) * sizeof(float) * tokens * hidden);
}

BENCHMARK(Forward)
    ->Args({4096, 4096, 0})
    ->Args({4096, 4096, 1})
    ->Args({64, 256, 0})
    ->UseRealTime();
BENCHMARK(Backward)
    ->Args({4096, 4096, 0})
    ->Args({4096, 4096, 1})
    ->Args({64, 256, 0})
    ->UseRealTime();

}  // namespace
}  // namespace mimo::kernels
