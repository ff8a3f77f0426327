#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/activation/bias_activation.h"
#include "kernels/testing/bench_floor.h"

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
      kTokens, kFeatures, DType::kFloat32));
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

BENCHMARK(Forward)->DenseRange(0, 5)->UseRealTime();
BENCHMARK(Backward)->DenseRange(0, 5)->UseRealTime();

}  // namespace
}  // namespace mimo::kernels
