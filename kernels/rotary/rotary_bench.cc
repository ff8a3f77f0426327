#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/rotary/rotary.h"
#include "kernels/testing/bench_floor.h"
#include "kernels/testing/cuda_bench.h"

namespace mimo::kernels {
namespace {

// Arguments: T, N, D; rows of q, k and v together, of which N heads turn.
void Rotate(benchmark::State& state) {
  const int64_t tokens = state.range(0), heads = state.range(1);
  const int64_t head_dim = state.range(2), stride = 3 * heads * head_dim;
  std::vector<float> x(tokens * stride, 1);
  std::vector<float> cos(tokens * head_dim / 2), sin(cos.size());
  RotaryTable(cos.data(), sin.data(), tokens, head_dim, 10000, DType::kFloat32);
  std::vector<int32_t> positions(tokens);
  for (int64_t t = 0; t < tokens; ++t) positions[t] = static_cast<int32_t>(t);
  for (auto _ : state) {
    Rotary({.x = x.data(),
            .cos = cos.data(),
            .sin = sin.data(),
            .positions = positions.data(),
            .tokens = tokens,
            .heads = heads,
            .head_dim = head_dim,
            .stride = stride,
            .max_position = tokens,
            .dtype = DType::kFloat32},
           Stream());
  }
  ReportBytes(state, 2.0 * sizeof(float) * tokens * heads * head_dim);
}

void RotateCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t tokens = state.range(0), heads = state.range(1);
  const int64_t head_dim = state.range(2), stride = 3 * heads / 2 * head_dim;
  std::vector<float> cos(tokens * head_dim / 2), sin(cos.size());
  RotaryTable(cos.data(), sin.data(), tokens, head_dim, 10000,
              DType::kBFloat16);
  std::vector<int32_t> positions(tokens);
  for (int64_t t = 0; t < tokens; ++t) positions[t] = static_cast<int32_t>(t);
  const RotaryArgs args = {.x = gpu.Random(DType::kBFloat16, tokens * stride),
                           .cos = gpu.Copy(cos),
                           .sin = gpu.Copy(sin),
                           .positions = gpu.Copy(positions),
                           .tokens = tokens,
                           .heads = heads,
                           .head_dim = head_dim,
                           .stride = stride,
                           .max_position = tokens,
                           .dtype = DType::kBFloat16};
  gpu.Run([&](Stream stream) { Rotary(args, stream); });
  gpu.ReportBytes(2.0 * 2 * tokens * heads * head_dim);
}

BENCHMARK(Rotate)->Args({2048, 32, 128})->Args({64, 4, 64})->UseRealTime();
// q and k of 32 heads each.
BENCHMARK(RotateCuda)->Args({8192, 64, 128})->UseManualTime();

}  // namespace
}  // namespace mimo::kernels
