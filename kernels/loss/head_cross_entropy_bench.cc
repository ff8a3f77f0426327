// GFLOP/s of the head and its loss by the flops of head_cross_entropy.h, and
// their share of the sgemm peak measured in the same run (sgemm%).
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/gemm/gemm_floor.h"
#include "kernels/loss/head_cross_entropy.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

// Arguments: T, H, V, chunk, backward. Half of the tokens are labelled.
void BenchHeadCrossEntropy(benchmark::State& state) {
  const int64_t tokens = state.range(0), hidden = state.range(1);
  const int64_t vocab = state.range(2), chunk = state.range(3);
  const bool backward = state.range(4) != 0;
  const std::vector<float> x = RandomVector<float>(tokens * hidden, 1);
  const std::vector<float> weight = RandomVector<float>(vocab * hidden, 2);
  std::mt19937 bits(3);
  std::vector<int32_t> labels(tokens, -100);
  for (int64_t t = 0; t < tokens; t += 2) labels[t] = bits() % vocab;
  std::vector<float> lse(tokens), dx(x.size()), dweight(weight.size());
  std::vector<char> workspace(
      HeadCrossEntropyWorkspaceBytes(chunk, hidden, vocab, DType::kFloat32));
  double loss;
  const double dloss = 1;
  const HeadCrossEntropyForwardArgs forward = {.x = x.data(),
                                               .weight = weight.data(),
                                               .labels = labels.data(),
                                               .loss = &loss,
                                               .lse = lse.data(),
                                               .workspace = workspace.data(),
                                               .tokens = tokens,
                                               .hidden = hidden,
                                               .vocab = vocab,
                                               .chunk = chunk,
                                               .dtype = DType::kFloat32};
  HeadCrossEntropyForward(forward, {});
  for (auto _ : state) {
    if (!backward) {
      HeadCrossEntropyForward(forward, {});
      continue;
    }
    HeadCrossEntropyBackward({.x = x.data(),
                              .weight = weight.data(),
                              .labels = labels.data(),
                              .lse = lse.data(),
                              .dloss = &dloss,
                              .dx = dx.data(),
                              .dweight = dweight.data(),
                              .dweight_beta = 0,
                              .workspace = workspace.data(),
                              .tokens = tokens,
                              .hidden = hidden,
                              .vocab = vocab,
                              .chunk = chunk,
                              .dtype = DType::kFloat32},
                             {});
  }
  ReportFlops(state,
              (backward ? 6.0 : 2.0) * ((tokens + 1) / 2) * hidden * vocab);
}
BENCHMARK(BenchHeadCrossEntropy)
    ->ArgNames({"T", "H", "V", "chunk", "backward"})
    ->ArgsProduct({{1200}, {128}, {512, 1024}, {1024}, {0, 1}})
    ->ArgsProduct({{1024}, {512}, {32000}, {256}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace mimo::kernels
