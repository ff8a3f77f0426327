#include "kernels/gemm/gemm_floor.h"

#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "kernels/base/parallel.h"
#include "kernels/gemm/gemm.h"

namespace mimo {
namespace {

double MeasureSgemm() {
  constexpr int kSize = 1024;
  const std::vector<float> a(kSize * kSize, 1), b(kSize * kSize, 1);
  std::vector<float> c(kSize * kSize);
  // Gemm sets OpenBLAS to one thread when it is first called: not after us.
  kernels::Gemm({.a = a.data(),
                 .b = b.data(),
                 .c = c.data(),
                 .m = 1,
                 .n = 1,
                 .k = 1,
                 .dtype = DType::kFloat32},
                {});
  openblas_set_num_threads(NumThreads());
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    const auto start = std::chrono::steady_clock::now();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize, 1,
                a.data(), kSize, b.data(), kSize, 0, c.data(), kSize);
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kSize * kSize * kSize / elapsed.count());
  }
  openblas_set_num_threads(1);
  return best;
}

}  // namespace

double SgemmFlopsPerSecond() {
  static const double rate = MeasureSgemm();
  return rate;
}

double CudaMatmulFlopsPerSecond(CudaBench& gpu) {
  static const double rate = [&] {
    constexpr int64_t kSize = 8192;
    const auto random = [&] {
      return gpu.Random(DType::kBFloat16, kSize * kSize);
    };
    const kernels::GemmArgs args = {.a = random(),
                                    .b = random(),
                                    .c = random(),
                                    .m = kSize,
                                    .n = kSize,
                                    .k = kSize,
                                    .transpose_b = true,
                                    .dtype = DType::kBFloat16};
    const auto run = [&](Stream stream) { kernels::Gemm(args, stream); };
    MedianCudaSeconds(gpu.stream(), 5, run);  // warms up
    return 2.0 * kSize * kSize * kSize /
           MedianCudaSeconds(gpu.stream(), 20, run);
  }();
  return rate;
}

void ReportFlops(benchmark::State& state, double flops) {
  using benchmark::Counter;
  const double total = flops * static_cast<double>(state.iterations());
  state.counters["GFLOP"] = Counter(total * 1e-9, Counter::kIsRate);
  state.counters["sgemm%"] =
      Counter(100 * total / SgemmFlopsPerSecond(), Counter::kIsRate);
}

}  // namespace mimo
