#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/activation/bias_activation.h"
#include "kernels/testing/bench_floor.h"
#include "kernels/testing/cuda_bench.h"

namespace mimo::kernels {
namespace {

// Argument: the activation. T = 577 * 4 and F = 4096: CLIP ViT-L/14's.
constexpr int64_t kTokens = 577 * 4, kFeatures = 4096;

void Forward(benchmark::State& state) {
  const std::vector<float> x(kTokens * kFeatures, 1), bias(kFeatures, 1);
  std::vector<float> y(kTokens * kFeatures);
  for (auto _ : state) {
    BiasActivationForward({.x = x.data(),
                           .bias = bias.data(),
                           .y = y.data(),
                           .activation = Activation(state.range(0)),
                           .tokens = kTokens,
                           .features = kFeatures,
                           .dtype = DType::kFloat32},
                          Stream());
  }
  ReportBytes(state, 2.0 * sizeof(float) * kTokens * kFeatures);
}

void Backward(benchmark::State& state) {
  const auto activation = Activation(state.range(0));
  const bool identity = activation == Activation::kIdentity;
  const std::vector<float> x(kTokens * kFeatures, 1), bias(kFeatures, 1);
  const std::vector<float> dy(kTokens * kFeatures, 1);
  std::vector<float> dx(kTokens * kFeatures), dbias(kFeatures);
  std::vector<char> workspace(BiasActivationBackwardWorkspaceBytes(
      kTokens, kFeatures, DType::kFloat32, Device::kCpu));
  for (auto _ : state) {
    BiasActivationBackward({.x = identity ? nullptr : x.data(),
                            .bias = bias.data(),
                            .dy = dy.data(),
                            .dx = identity ? nullptr : dx.data(),
                            .dbias = dbias.data(),
                            .dbias_beta = 0,
                            .workspace = workspace.data(),
                            .activation = activation,
                            .tokens = kTokens,
                            .features = kFeatures,
                            .dtype = DType::kFloat32},
                           Stream());
  }
  // The identity reads dy and writes nothing but dbias.
  ReportBytes(state,
              (identity ? 1.0 : 3.0) * sizeof(float) * kTokens * kFeatures);
}

// The same on the GPU, in bfloat16.
void CudaForward(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const DType dtype = DType::kBFloat16;
  const void* x = gpu.Random(dtype, kTokens * kFeatures, 4);
  const void* bias = gpu.Random(dtype, kFeatures);
  void* y = gpu.Random(dtype, kTokens * kFeatures);
  gpu.Run([&](Stream stream) {
    BiasActivationForward({.x = x,
                           .bias = bias,
                           .y = y,
                           .activation = Activation(state.range(0)),
                           .tokens = kTokens,
                           .features = kFeatures,
                           .dtype = dtype},
                          stream);
  });
  gpu.ReportBytes(2.0 * SizeOf(dtype) * kTokens * kFeatures);
}

void CudaBackward(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const auto activation = Activation(state.range(0));
  const bool identity = activation == Activation::kIdentity;
  const DType dtype = DType::kBFloat16;
  const void* x = gpu.Random(dtype, kTokens * kFeatures, 4);
  const void* bias = gpu.Random(dtype, kFeatures);
  const void* dy = gpu.Random(dtype, kTokens * kFeatures);
  void* dx = gpu.Random(dtype, kTokens * kFeatures);
  void* dbias = gpu.Random(DType::kFloat32, kFeatures);
  void* workspace = gpu.Allocate(BiasActivationBackwardWorkspaceBytes(
      kTokens, kFeatures, dtype, Device::kCuda));
  gpu.Run([&](Stream stream) {
    BiasActivationBackward({.x = identity ? nullptr : x,
                            .bias = bias,
                            .dy = dy,
                            .dx = identity ? nullptr : dx,
                            .dbias = dbias,
                            .dbias_beta = 0,
                            .workspace = workspace,
                            .activation = activation,
                            .tokens = kTokens,
                            .features = kFeatures,
                            .dtype = dtype},
                           stream);
  });
  gpu.ReportBytes((identity ? 1.0 : 3.0) * SizeOf(dtype) * kTokens * kFeatures);
}

BENCHMARK(CudaForward)->DenseRange(0, 5)->UseManualTime();
BENCHMARK(CudaBackward)->DenseRange(0, 5)->UseManualTime();
BENCHMARK(Forward)->DenseRange(0, 5)->UseRealTime();
BENCHMARK(Backward)->DenseRange(0, 5)->UseRealTime();

}  // namespace
}  // namespace mimo::kernels
