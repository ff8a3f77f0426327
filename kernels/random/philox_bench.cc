#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/random/philox.h"
#include "kernels/testing/bench_floor.h"
#include "kernels/testing/cuda_bench.h"

namespace mimo::kernels {
namespace {

constexpr int64_t kSize = 1 << 22;

RandomFillArgs Args(std::vector<float>& out) {
  return {.out = out.data(),
          .size = kSize,
          .seed = 1,
          .stream = 2,
          .dtype = DType::kFloat32};
}

void Normal(benchmark::State& state) {
  std::vector<float> out(kSize);
  for (auto _ : state) FillNormal(Args(out), 0, 1, Stream());
  ReportBytes(state, 1.0 * sizeof(float) * kSize);
}

BENCHMARK(Normal)->UseRealTime();

// bfloat16 weights, of 4096 x 11008.
void CudaNormal(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t size = 4096 * 11008;
  void* out = gpu.Allocate(2 * size);
  gpu.Run([&](Stream stream) {
    FillNormal({.out = out,
                .size = size,
                .seed = 1,
                .stream = 2,
                .dtype = DType::kBFloat16},
               0, 1, stream);
  });
  gpu.ReportBytes(2.0 * size);
}
BENCHMARK(CudaNormal)->UseManualTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace mimo::kernels
