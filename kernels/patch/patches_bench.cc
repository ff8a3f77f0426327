#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/patch/patches.h"
#include "kernels/testing/bench_floor.h"
#include "kernels/testing/cuda_bench.h"

namespace mimo::kernels {
namespace {

// Images of 3 x 336 x 336 in patches of 14: CLIP ViT-L/14-336's.
constexpr int64_t kImages = 16, kPixels = kImages * 3 * 336 * 336;
constexpr int64_t kPatches = 576, kHidden = 1024;

void Extract(benchmark::State& state) {
  const bool backward = state.range(0) != 0;
  const std::vector<float> in(kPixels, 1);
  std::vector<float> out(kPixels);
  const PatchArgs args = {.in = in.data(),
                          .out = out.data(),
                          .images = kImages,
                          .channels = 3,
                          .height = 336,
                          .width = 336,
                          .patch_size = 14,
                          .dtype = DType::kFloat32};
  for (auto _ : state) {
    if (backward) {
      PatchBackward(args, Stream());
    } else {
      PatchForward(args, Stream());
    }
  }
  ReportBytes(state, 2.0 * sizeof(float) * kPixels);
}

void TokensForward(benchmark::State& state) {
  const std::vector<float> x(kImages * kPatches * kHidden, 1);
  const std::vector<float> position((1 + kPatches) * kHidden, 1);
  std::vector<float> y(kImages * (1 + kPatches) * kHidden);
  for (auto _ : state) {
    VisionTokensForward({.x = x.data(),
                         .class_token = position.data(),
                         .position = position.data(),
                         .y = y.data(),
                         .images = kImages,
                         .patches = kPatches,
                         .hidden = kHidden,
                         .dtype = DType::kFloat32},
                        Stream());
  }
  ReportBytes(state, 1.0 * sizeof(float) * (x.size() + y.size()));
}

void TokensBackward(benchmark::State& state) {
  const std::vector<float> dy(kImages * (1 + kPatches) * kHidden, 1);
  std::vector<float> dx(kImages * kPatches * kHidden), dclass(kHidden);
  std::vector<float> dposition((1 + kPatches) * kHidden);
  for (auto _ : state) {
    VisionTokensBackward({.dy = dy.data(),
                          .class_token = true,
                          .dx = dx.data(),
                          .dclass = dclass.data(),
                          .dposition = dposition.data(),
                          .dclass_beta = 0,
                          .dposition_beta = 0,
                          .images = kImages,
                          .patches = kPatches,
                          .hidden = kHidden,
                          .dtype = DType::kFloat32},
                         Stream());
  }
  ReportBytes(state, 1.0 * sizeof(float) * (dy.size() + dx.size()));
}

void ExtractCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const bool backward = state.range(0) != 0;
  const PatchArgs args = {.in = gpu.Random(DType::kBFloat16, kPixels),
                          .out = gpu.Allocate(2 * kPixels),
                          .images = kImages,
                          .channels = 3,
                          .height = 336,
                          .width = 336,
                          .patch_size = 14,
                          .dtype = DType::kBFloat16};
  gpu.Run([&](Stream stream) {
    backward ? PatchBackward(args, stream) : PatchForward(args, stream);
  });
  gpu.ReportBytes(2.0 * 2 * kPixels);
}

void TokensForwardCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const DType dtype = DType::kBFloat16;
  const VisionTokensForwardArgs args = {
      .x = gpu.Random(dtype, kImages * kPatches * kHidden),
      .class_token = gpu.Random(dtype, kHidden),
      .position = gpu.Random(dtype, (1 + kPatches) * kHidden),
      .y = gpu.Allocate(2 * kImages * (1 + kPatches) * kHidden),
      .images = kImages,
      .patches = kPatches,
      .hidden = kHidden,
      .dtype = dtype};
  gpu.Run([&](Stream stream) { VisionTokensForward(args, stream); });
  gpu.ReportBytes(2.0 * kImages * (1 + 2 * kPatches) * kHidden);
}

void TokensBackwardCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const DType dtype = DType::kBFloat16;
  const VisionTokensBackwardArgs args = {
      .dy = gpu.Random(dtype, kImages * (1 + kPatches) * kHidden),
      .class_token = true,
      .dx = gpu.Allocate(2 * kImages * kPatches * kHidden),
      .dclass = gpu.Allocate(4 * kHidden),
      .dposition = gpu.Allocate(4 * (1 + kPatches) * kHidden),
      .dclass_beta = 0,
      .dposition_beta = 0,
      .images = kImages,
      .patches = kPatches,
      .hidden = kHidden,
      .dtype = dtype};
  gpu.Run([&](Stream stream) { VisionTokensBackward(args, stream); });
  gpu.ReportBytes(2.0 * kImages * (1 + 2 * kPatches) * kHidden);
}

BENCHMARK(Extract)->ArgName("backward")->Arg(0)->Arg(1)->UseRealTime();
BENCHMARK(TokensForward)->UseRealTime();
BENCHMARK(TokensBackward)->UseRealTime();
BENCHMARK(ExtractCuda)->ArgName("backward")->Arg(0)->Arg(1)->UseManualTime();
BENCHMARK(TokensForwardCuda)->UseManualTime();
BENCHMARK(TokensBackwardCuda)->UseManualTime();

}  // namespace
}  // namespace mimo::kernels
