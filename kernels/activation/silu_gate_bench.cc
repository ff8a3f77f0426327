#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/activation/silu_gate.h"
#include "kernels/testing/bench_floor.h"
#include "kernels/testing/cuda_bench.h"

namespace mimo::kernels {
namespace {

// Arguments: T, F. 11008 is Llama-2 7B's.
void Forward(benchmark::State& state) {
  const int64_t tokens = state.range(0), features = state.range(1);
  const std::vector<float> x(tokens * 2 * features, 1);
  std::vector<float> y(tokens * features);
  for (auto _ : state) {
    SiluGateForward({.x = x.data(),
                     .y = y.data(),
                     .tokens = tokens,
                     .features = features,
                     .dtype = DType::kFloat32},
                    Stream());
  }
  ReportBytes(state, 3.0 * sizeof(float) * tokens * features);
}

void Backward(benchmark::State& state) {
  const int64_t tokens = state.range(0), features = state.range(1);
  const std::vector<float> x(tokens * 2 * features, 1);
  const std::vector<float> dy(tokens * features, 1);
  std::vector<float> dx(tokens * 2 * features);
  for (auto _ : state) {
    SiluGateBackward({.x = x.data(),
                      .dy = dy.data(),
                      .dx = dx.data(),
                      .tokens = tokens,
                      .features = features,
                      .dtype = DType::kFloat32},
                     Stream());
  }
  ReportBytes(state, 5.0 * sizeof(float) * tokens * features);
}

void ForwardCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t tokens = state.range(0), features = state.range(1);
  const SiluGateForwardArgs args = {
      .x = gpu.Random(DType::kBFloat16, tokens * 2 * features),
      .y = gpu.Allocate(2 * tokens * features),
      .tokens = tokens,
      .features = features,
      .dtype = DType::kBFloat16};
  gpu.Run([&](Stream stream) { SiluGateForward(args, stream); });
  gpu.ReportBytes(3.0 * 2 * tokens * features);
}

void BackwardCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t tokens = state.range(0), features = state.range(1);
  const SiluGateBackwardArgs args = {
      .x = gpu.Random(DType::kBFloat16, tokens * 2 * features),
      .dy = gpu.Random(DType::kBFloat16, tokens * features),
      .dx = gpu.Allocate(2 * tokens * 2 * features),
      .tokens = tokens,
      .features = features,
      .dtype = DType::kBFloat16};
  gpu.Run([&](Stream stream) { SiluGateBackward(args, stream); });
  gpu.ReportBytes(5.0 * 2 * tokens * features);
}

BENCHMARK(Forward)->Args({1024, 11008})->Args({64, 688})->UseRealTime();
BENCHMARK(Backward)->Args({1024, 11008})->Args({64, 688})->UseRealTime();
BENCHMARK(ForwardCuda)->Args({8192, 11008})->UseManualTime();
BENCHMARK(BackwardCuda)->Args({8192, 11008})->UseManualTime();

}  // namespace
}  // namespace mimo::kernels
