// GFLOP/s of Gemm, and its share of what bare OpenBLAS, on as many threads of
// its own, reaches on the same product in the same run (blas%).
#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/base/parallel.h"
#include "kernels/gemm/gemm.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

struct Shape {
  const char* name;
  int64_t m, n, k;
  bool transpose_a, transpose_b;
};

// T = 1200 tokens of a model of H = 128, F = 512, V = 1024; and big ones.
constexpr Shape kShapes[] = {
    {"qkv", 1200, 384, 128, false, true},
    {"qkv_dx", 1200, 128, 384, false, false},
    {"qkv_dw", 384, 128, 1200, true, false},
    {"proj", 1200, 128, 128, false, true},
    {"proj_dw", 128, 128, 1200, true, false},
    {"up", 1200, 512, 128, false, true},
    {"down", 1200, 128, 512, false, true},
    {"down_dw", 128, 512, 1200, true, false},
    {"head", 600, 1024, 128, false, true},
    {"head_dx", 600, 128, 1024, false, false},
    {"head_dw", 1024, 128, 600, true, false},
    {"decode", 1, 384, 128, false, true},
    {"tile", 64, 64, 32, false, true},
    {"square_1024", 1024, 1024, 1024, false, true},
    {"square_2048", 2048, 2048, 2048, false, true},
};

// Seconds of the fastest call within a fifth of a second.
template <typename F>
double Fastest(F&& f) {
  using Clock = std::chrono::steady_clock;
  double fastest = 1e30;
  const auto start = Clock::now();
  do {
    const auto before = Clock::now();
    f();
    const std::chrono::duration<double> elapsed = Clock::now() - before;
    fastest = std::min(fastest, elapsed.count());
  } while (Clock::now() - start < std::chrono::milliseconds(200));
  return fastest;
}

void BenchGemm(benchmark::State& state, const Shape& s) {
  const std::vector<float> a = RandomVector<float>(s.m * s.k, 1);
  const std::vector<float> b = RandomVector<float>(s.k * s.n, 2);
  std::vector<float> c(s.m * s.n);
  const GemmArgs args = {.a = a.data(),
                         .b = b.data(),
                         .c = c.data(),
                         .m = s.m,
                         .n = s.n,
                         .k = s.k,
                         .transpose_a = s.transpose_a,
                         .transpose_b = s.transpose_b,
                         .dtype = DType::kFloat32};
  const auto ours = [&] { Gemm(args, {}); };
  ours();  // before OpenBLAS's threads are set: Gemm sets them to one
  openblas_set_num_threads(NumThreads());
  const double blas = Fastest([&] {
    cblas_sgemm(CblasRowMajor, s.transpose_a ? CblasTrans : CblasNoTrans,
                s.transpose_b ? CblasTrans : CblasNoTrans, s.m, s.n, s.k, 1,
                a.data(), s.transpose_a ? s.m : s.k, b.data(),
                s.transpose_b ? s.k : s.n, 0, c.data(), s.n);
  });
  openblas_set_num_threads(1);
  const double fastest = Fastest(ours);
  for (auto _ : state) ours();
  const double flops = 2e-9 * s.m * s.n * s.k;
  state.counters["GFLOP/s"] = benchmark::Counter(flops * state.iterations(),
                                                 benchmark::Counter::kIsRate);
  state.counters["best"] = flops / fastest;
  state.counters["blas"] = flops / blas;
  state.counters["blas%"] = 100 * blas / fastest;
}

const bool registered = [] {
  for (const Shape& s : kShapes) {
    benchmark::RegisterBenchmark(
        s.name, [&s](benchmark::State& state) { BenchGemm(state, s); })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond)
        ->Iterations(200);
  }
  return true;
}();

}  // namespace
}  // namespace mimo::kernels
