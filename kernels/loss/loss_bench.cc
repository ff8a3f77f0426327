// The head with its loss by the flops of head_cross_entropy.h, their share of
// the matrix product measured in the same run (sgemm%, floor%); on a GPU
// cross-entropy and the largest logits alone by the bytes of their headers.
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/gemm/gemm_floor.h"
#include "kernels/loss/arg_max.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/head_cross_entropy.h"
#include "kernels/testing/cuda_bench.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

// Forward alone, backward alone, both at once.
enum How { kForward, kBackward, kBoth };

std::vector<int32_t> RandomLabels(int64_t tokens, int64_t vocab, int every) {
  std::mt19937 bits(3);
  std::vector<int32_t> labels(tokens, -100);
  for (int64_t t = 0; t < tokens; t += every) labels[t] = bits() % vocab;
  return labels;
}

void Enqueue(How how, const HeadCrossEntropyForwardBackwardArgs& args,
             double* lse, Stream stream) {
  if (how == kBoth) return HeadCrossEntropyForwardBackward(args, stream);
  if (how == kForward) {
    return HeadCrossEntropyForward(
        {args.x, args.weight, args.labels, args.loss, lse, args.workspace,
         args.tokens, args.hidden, args.vocab, args.chunk, args.part,
         args.dtype, args.logits_dtype},
        stream);
  }
  HeadCrossEntropyBackward(
      {args.x, args.weight, args.labels, lse, args.dloss, args.dx, args.dweight,
       args.dweight_beta, args.workspace, args.tokens, args.hidden, args.vocab,
       args.chunk, args.part, args.dtype, args.logits_dtype},
      stream);
}

// Half of the tokens are labelled.
void CpuHead(benchmark::State& state) {
  const int64_t tokens = state.range(0), hidden = state.range(1);
  const int64_t vocab = state.range(2), chunk = state.range(3);
  const How how = static_cast<How>(state.range(4));
  const std::vector<float> x = RandomVector<float>(tokens * hidden, 1);
  const std::vector<float> weight = RandomVector<float>(vocab * hidden, 2);
  const std::vector<int32_t> labels = RandomLabels(tokens, vocab, 2);
  std::vector<double> lse(tokens);
  std::vector<float> dx(x.size()), dweight(weight.size());
  std::vector<char> workspace(HeadCrossEntropyWorkspaceBytes(
      chunk, hidden, vocab, DType::kFloat32, DType::kFloat32, Device::kCpu));
  double loss;
  const double dloss = 1;
  const HeadCrossEntropyForwardBackwardArgs args = {
      .x = x.data(),
      .weight = weight.data(),
      .labels = labels.data(),
      .loss = &loss,
      .dloss = &dloss,
      .dx = dx.data(),
      .dweight = dweight.data(),
      .dweight_beta = 0,
      .workspace = workspace.data(),
      .tokens = tokens,
      .hidden = hidden,
      .vocab = vocab,
      .chunk = chunk,
      .dtype = DType::kFloat32,
      .logits_dtype = DType::kFloat32};
  Enqueue(kForward, args, lse.data(), {});
  for (auto _ : state) Enqueue(how, args, lse.data(), {});
  ReportFlops(state, (how == kForward ? 2.0 : 6.0) * ((tokens + 1) / 2) *
                         hidden * vocab);
}
BENCHMARK(CpuHead)
    ->ArgNames({"T", "H", "V", "chunk", "how"})
    ->ArgsProduct(
        {{1200}, {128}, {512, 1024}, {1024}, {kForward, kBackward, kBoth}})
    ->ArgsProduct({{1024}, {512}, {32000}, {256}, {kForward, kBackward, kBoth}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

// bfloat16, every token labelled.
void CudaCrossEntropy(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t tokens = state.range(0), vocab = state.range(1);
  const How how = static_cast<How>(state.range(2));
  void* logits = gpu.Random(DType::kBFloat16, tokens * vocab, 4);
  const int32_t* labels = gpu.Copy(RandomLabels(tokens, vocab, 1));
  double* lse = gpu.Copy(std::vector<double>(tokens, 10));
  double* loss = gpu.Copy(std::vector<double>(tokens));
  const double* dloss = gpu.Copy(std::vector<double>{1.0 / tokens});
  gpu.Run([&](Stream stream) {
    if (how == kForward) {
      CrossEntropyForward({.logits = logits,
                           .labels = labels,
                           .lse = lse,
                           .loss = loss,
                           .tokens = tokens,
                           .vocab = vocab,
                           .dtype = DType::kBFloat16},
                          stream);
    } else if (how == kBackward) {
      CrossEntropyBackward({.logits = logits,
                            .dlogits = logits,
                            .labels = labels,
                            .lse = lse,
                            .dloss = dloss,
                            .tokens = tokens,
                            .vocab = vocab,
                            .dtype = DType::kBFloat16,
                            .dlogits_dtype = DType::kBFloat16},
                           stream);
    } else {
      CrossEntropyForwardBackward({.logits = logits,
                                   .dlogits = logits,
                                   .labels = labels,
                                   .loss = loss,
                                   .dloss = dloss,
                                   .tokens = tokens,
                                   .vocab = vocab,
                                   .dtype = DType::kBFloat16,
                                   .dlogits_dtype = DType::kBFloat16},
                                  stream);
    }
  });
  gpu.ReportBytes((how == kForward ? 2.0 : 4.0) * tokens * vocab);
}
BENCHMARK(CudaCrossEntropy)
    ->ArgNames({"T", "V", "how"})
    ->ArgsProduct({{8192}, {32064}, {kForward, kBackward, kBoth}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

void CudaArgMax(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t rows = state.range(0), vocab = state.range(1);
  const void* logits = gpu.Random(DType::kBFloat16, rows * vocab, 4);
  int32_t* tokens = gpu.Copy(std::vector<int32_t>(rows));
  gpu.Run([&](Stream stream) {
    ArgMax({logits, tokens, rows, vocab, DType::kBFloat16}, stream);
  });
  gpu.ReportBytes(2.0 * rows * vocab);
}
BENCHMARK(CudaArgMax)
    ->ArgNames({"T", "V"})
    ->Args({8192, 32064})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

// Arguments as above, whether the head is frozen: dx alone, and whether the
// logits are float32.
void CudaHead(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t tokens = state.range(0), hidden = 4096, vocab = 32064;
  const int64_t chunk = state.range(1);
  const How how = static_cast<How>(state.range(2));
  const bool frozen = state.range(3) != 0;
  const DType logits = state.range(4) ? DType::kFloat32 : DType::kBFloat16;
  const DType dtype = DType::kBFloat16;
  const double floor = CudaMatmulFlopsPerSecond(gpu);
  double* lse = gpu.Copy(std::vector<double>(tokens, 10));
  const HeadCrossEntropyForwardBackwardArgs args = {
      .x = gpu.Random(dtype, tokens * hidden),
      .weight = gpu.Random(dtype, vocab * hidden, 0.05f),
      .labels = gpu.Copy(RandomLabels(tokens, vocab, 1)),
      .loss = gpu.Copy(std::vector<double>(1)),
      .dloss = gpu.Copy(std::vector<double>{1.0 / tokens}),
      .dx = gpu.Allocate(tokens * hidden * 2),
      .dweight = frozen ? nullptr : gpu.Allocate(vocab * hidden * 4),
      .dweight_beta = 0,
      .workspace = gpu.Allocate(HeadCrossEntropyWorkspaceBytes(
          chunk, hidden, vocab, dtype, logits, Device::kCuda)),
      .tokens = tokens,
      .hidden = hidden,
      .vocab = vocab,
      .chunk = chunk,
      .dtype = dtype,
      .logits_dtype = logits};
  gpu.Run([&](Stream stream) { Enqueue(how, args, lse, stream); });
  const double products = how == kForward ? 1 : frozen ? 2 : 3;
  gpu.ReportFlops(products * 2 * tokens * hidden * vocab, floor);
}
BENCHMARK(CudaHead)
    ->ArgNames({"T", "chunk", "how", "frozen", "float32"})
    ->ArgsProduct({{8192}, {1024, 2048, 8192}, {kBoth}, {0}, {0}})
    ->ArgsProduct({{8192}, {8192}, {kBoth}, {0}, {1}})
    ->ArgsProduct({{8192}, {2048}, {kForward, kBackward}, {0}, {0}})
    ->ArgsProduct({{1024}, {1024}, {kForward, kBackward, kBoth}, {1}, {0}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace mimo::kernels
