// CPU: GFLOP/s of Gemm, and its share of what bare OpenBLAS, on as many threads
// of its own, reaches on the same product in the same run (blas%).
// CUDA: TFLOP/s of the tuned plan, the share of the 8192 x 8192 x 8192 product
// of the same run (floor%), and the seconds of cuBLAS's own choice in turn with
// it (beside).
// fp8: the forward of operands in 8 bits, without and with (x) quantising x,
// and how many times as fast as the bfloat16 product beside it (bf16x).
#include <cblas.h>
#ifdef MIMO_CUDA
#include <cublas_v2.h>
#endif

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "kernels/base/parallel.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_floor.h"
#include "kernels/quantise/quantise.h"
#include "kernels/testing/cuda_bench.h"
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

// A linear layer of T tokens, H -> F.
struct Layer {
  const char* name;
  int64_t tokens, features, hidden;
};
// LLaVA-1.5-7B: 8192 tokens of Llama; 32 images of 577 patches of CLIP ViT-L.
constexpr Layer kLayers[] = {
    {"square", 8192, 8192, 8192},    {"up", 8192, 11008, 4096},
    {"gate_up", 8192, 22016, 4096},  {"down", 8192, 4096, 11008},
    {"qkv", 8192, 12288, 4096},      {"out", 8192, 4096, 4096},
    {"head", 8192, 32064, 4096},     {"clip_fc1", 18464, 4096, 1024},
    {"clip_fc2", 18464, 1024, 4096}, {"clip_qkv", 18464, 3072, 1024},
    {"projector", 4608, 4096, 1024},
};

GemmArgs WeightGradient(const Layer& l, const void* x, const void* dy, void* dw,
                        DType dtype) {
  return {.a = dy,
          .b = x,
          .c = dw,
          .m = l.features,
          .n = l.hidden,
          .k = l.tokens,
          .transpose_a = true,
          .dtype = DType::kBFloat16,
          .c_dtype = dtype};
}

struct Form {
  const char* name;
  // The product of x [T, H], w [F, H], dy [T, F].
  GemmArgs (*args)(const Layer& l, const void* x, const void* w, const void* dy,
                   void* out);
};
constexpr Form kForms[] = {
    {"forward",
     [](const Layer& l, const void* x, const void* w, const void*, void* y) {
       return GemmArgs{.a = x,
                       .b = w,
                       .c = y,
                       .m = l.tokens,
                       .n = l.features,
                       .k = l.hidden,
                       .transpose_b = true,
                       .dtype = DType::kBFloat16};
     }},
    {"dx",
     [](const Layer& l, const void*, const void* w, const void* dy, void* dx) {
       return GemmArgs{.a = dy,
                       .b = w,
                       .c = dx,
                       .m = l.tokens,
                       .n = l.hidden,
                       .k = l.features,
                       .dtype = DType::kBFloat16};
     }},
    {"dw",
     [](const Layer& l, const void* x, const void*, const void* dy, void* dw) {
       return WeightGradient(l, x, dy, dw, DType::kFloat32);
     }},
    {"dw_bf16",
     [](const Layer& l, const void* x, const void*, const void* dy, void* dw) {
       return WeightGradient(l, x, dy, dw, DType::kBFloat16);
     }},
};

// As torch.mm has it multiplied: cuBLAS chooses how.
void BesideGemm(const GemmArgs& args, Stream stream) {
#ifdef MIMO_CUDA
  static const cublasHandle_t handle = [] {
    cublasHandle_t created;
    CHECK_EQ(cublasCreate(&created), CUBLAS_STATUS_SUCCESS);
    return created;
  }();
  const auto operation = [](bool transpose) {
    return transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
  };
  const float one = 1, zero = 0;
  const auto raw = static_cast<cudaStream_t>(stream.raw);
  CHECK_EQ(cublasSetStream(handle, raw), CUBLAS_STATUS_SUCCESS);
  CHECK_EQ(cublasGemmEx(
               handle, operation(args.transpose_b), operation(args.transpose_a),
               args.n, args.m, args.k, &one, args.b, CUDA_R_16BF,
               args.transpose_b ? args.k : args.n, args.a, CUDA_R_16BF,
               args.transpose_a ? args.m : args.k, &zero, args.c,
               args.c_dtype == DType::kFloat32 ? CUDA_R_32F : CUDA_R_16BF,
               args.n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT_TENSOR_OP),
           CUBLAS_STATUS_SUCCESS);
#endif
}

void BenchCuda(benchmark::State& state, const Layer& l, const Form& form) {
  CudaBench gpu(state);
  if (!gpu) return;
  const double floor = CudaMatmulFlopsPerSecond(gpu);
  AutotuneGemm(std::filesystem::temp_directory_path() / "mimo_gemm_bench_plans",
               Device::kCuda);
  const GemmArgs shape = form.args(l, nullptr, nullptr, nullptr, nullptr);
  const GemmArgs args = form.args(
      l, gpu.Random(shape.dtype, l.tokens * l.hidden),
      gpu.Random(shape.dtype, l.features * l.hidden),
      gpu.Random(shape.dtype, l.tokens * l.features),
      gpu.Random(shape.c_dtype.value_or(shape.dtype), shape.m * shape.n));
  gpu.Run([&](Stream stream) { Gemm(args, stream); },
          [&](Stream stream) { BesideGemm(args, stream); });
  gpu.ReportFlops(2.0 * shape.m * shape.n * shape.k, floor);
  AutotuneGemm("", Device::kCuda);
}

void BenchFloat8(benchmark::State& state, const Layer& l, bool quantise_x) {
  CudaBench gpu(state);
  if (!gpu) return;
  const auto in_8_bits = [&](int64_t rows) {
    return QuantiseArgs{
        .x = gpu.Random(DType::kBFloat16, rows * l.hidden),
        .codes = gpu.Allocate(rows * l.hidden),
        .scale = static_cast<float*>(gpu.Allocate(2 * sizeof(float))),
        .rows = rows,
        .columns = l.hidden,
        .dtype = DType::kBFloat16,
        .code_dtype = DType::kFloat8E4M3};
  };
  const QuantiseArgs x = in_8_bits(l.tokens), w = in_8_bits(l.features);
  Quantise(x, gpu.stream());
  Quantise(w, gpu.stream());
  const GemmArgs wide =
      kForms[0].args(l, x.x, w.x, nullptr,
                     gpu.Random(DType::kBFloat16, l.tokens * l.features));
  GemmArgs args = wide;
  args.a = x.codes;
  args.b = w.codes;
  args.dtype = DType::kFloat8E4M3;
  args.c_dtype = DType::kBFloat16;
  args.a_scale = x.scale;
  args.b_scale = w.scale;
  const double bfloat16 = MedianCudaSeconds(
      gpu.stream(), 30, [&](Stream stream) { Gemm(wide, stream); });
  gpu.Run([&](Stream stream) {
    if (quantise_x) Quantise(x, stream);
    Gemm(args, stream);
  });
  gpu.ReportFlops(2.0 * args.m * args.n * args.k,
                  CudaMatmulFlopsPerSecond(gpu));
  state.counters["bf16x"] = bfloat16 / gpu.median_seconds();
}

const bool registered = [] {
  for (const Layer& l : kLayers) {
    for (bool quantise_x : {false, true}) {
      benchmark::RegisterBenchmark(
          absl::StrCat("Cuda/", l.name, "/fp8", quantise_x ? "/x" : "").c_str(),
          [&l, quantise_x](benchmark::State& state) {
            BenchFloat8(state, l, quantise_x);
          })
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond)
          ->Iterations(100);
    }
    for (const Form& form : kForms) {
      benchmark::RegisterBenchmark(
          absl::StrCat("Cuda/", l.name, "/", form.name).c_str(),
          [&l, &form](benchmark::State& state) { BenchCuda(state, l, form); })
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond)
          ->Iterations(100);
    }
  }
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
