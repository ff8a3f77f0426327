#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/testing/bench_floor.h"
#include "kernels/testing/cuda_bench.h"

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

void ForwardCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t tokens = state.range(0), hidden = state.range(1);
  const bool residual = state.range(2) != 0;
  const DType dtype = DType::kBFloat16;
  void* weight = gpu.Random(dtype, hidden);
  const RmsNormForwardArgs args = {
      .x = gpu.Random(dtype, tokens * hidden),
      .residual = residual ? gpu.Random(dtype, tokens * hidden) : nullptr,
      .weight = weight,
      .sum = residual ? gpu.Allocate(2 * tokens * hidden) : nullptr,
      .y = gpu.Allocate(2 * tokens * hidden),
      .rstd = gpu.Allocate(4 * tokens),
      .tokens = tokens,
      .hidden = hidden,
      .eps = 1e-5,
      .dtype = dtype};
  gpu.Run([&](Stream stream) { RmsNormForward(args, stream); });
  gpu.ReportBytes((residual ? 4.0 : 2.0) * 2 * tokens * hidden);
}

void BackwardCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t tokens = state.range(0), hidden = state.range(1);
  const bool accumulate = state.range(2) != 0;
  const DType dtype = DType::kBFloat16;
  const RmsNormBackwardArgs args = {
      .x = gpu.Random(dtype, tokens * hidden),
      .weight = gpu.Random(dtype, hidden),
      .rstd = gpu.Random(DType::kFloat32, tokens),
      .dy = gpu.Random(dtype, tokens * hidden),
      .dx = gpu.Random(dtype, tokens * hidden),
      .accumulate_dx = accumulate,
      .dweight = gpu.Allocate(4 * hidden),
      .dweight_beta = 0,
      .workspace = gpu.Allocate(
          RmsNormBackwardWorkspaceBytes(tokens, hidden, dtype, Device::kCuda)),
      .tokens = tokens,
      .hidden = hidden,
      .dtype = dtype};
  gpu.Run([&](Stream stream) { RmsNormBackward(args, stream); });
  gpu.ReportBytes((accumulate ? 4.0 : 3.0) * 2 * tokens * hidden);
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
BENCHMARK(ForwardCuda)
    ->Args({8192, 4096, 0})
    ->Args({8192, 4096, 1})
    ->UseManualTime();
BENCHMARK(BackwardCuda)
    ->Args({8192, 4096, 0})
    ->Args({8192, 4096, 1})
    ->UseManualTime();

}  // namespace
}  // namespace mimo::kernels
