// The global norm and AdamW by the bytes of their headers.
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/base/device.h"
#include "kernels/optim/adamw.h"
#include "kernels/optim/global_norm.h"
#include "kernels/testing/bench_floor.h"
#include "kernels/testing/cuda_bench.h"

namespace mimo::kernels {
namespace {

// `count` tensors of `size` elements each, one after another.
std::vector<AdamWTensor> Split(int64_t count, int64_t size, DType dtype,
                               void* param, int16_t* remainder, void* grad,
                               DType exp_avg_dtype, void* exp_avg,
                               void* exp_avg_sq) {
  std::vector<AdamWTensor> tensors;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = [&](void* start, DType type) {
      return static_cast<char*>(start) + i * size * SizeOf(type);
    };
    tensors.push_back(
        {.param = at(param, dtype),
         .remainder = remainder == nullptr ? nullptr : remainder + i * size,
         .grad = at(grad, DType::kFloat32),
         .exp_avg = at(exp_avg, exp_avg_dtype),
         .exp_avg_sq = at(exp_avg_sq, DType::kFloat32),
         .size = size,
         .lr_scale = 1,
         .weight_decay = 0.1});
  }
  return tensors;
}

void Enqueue(bool norm, const TensorList& list, DType exp_avg_dtype,
             AdamWControl* control, Stream stream) {
  if (norm) {
    SumSquares({.tensors = &list, .control = control}, stream);
    ClipFactor({.max_norm = 1, .control = control}, stream);
  } else {
    AdamW({.tensors = &list,
           .exp_avg_dtype = exp_avg_dtype,
           .beta1 = 0.9,
           .beta2 = 0.95,
           .eps = 1e-8,
           .control = control},
          stream);
  }
}

// Arguments: the global norm or AdamW, tensors, elements of each.
void Cpu(benchmark::State& state) {
  const bool norm = state.range(0) != 0;
  const int64_t count = state.range(1), size = state.range(2);
  std::vector<float> param(count * size, 1), grad(count * size, 1);
  std::vector<float> exp_avg(count * size), exp_avg_sq(count * size);
  const TensorList list(
      Split(count, size, DType::kFloat32, param.data(), nullptr, grad.data(),
            DType::kFloat32, exp_avg.data(), exp_avg_sq.data()),
      DType::kFloat32, Stream());
  AdamWControl control = {.lr = 1e-3, .grad_scale = 1};
  for (auto _ : state) Enqueue(norm, list, DType::kFloat32, &control, Stream());
  ReportBytes(state, (norm ? 4.0 : 28.0) * count * size);
}
BENCHMARK(Cpu)
    ->ArgNames({"norm", "tensors", "size"})
    ->Args({1, 1, 1 << 25})
    ->Args({1, 300, 4096})
    ->Args({0, 1, 1 << 24})
    ->Args({0, 300, 4096})
    ->UseRealTime();

// And whether the parameters, and the first moments, are bfloat16.
void Cuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const bool norm = state.range(0) != 0;
  const int64_t count = state.range(1), size = state.range(2);
  const auto type = [&](int argument) {
    return state.range(argument) ? DType::kBFloat16 : DType::kFloat32;
  };
  const DType dtype = type(3), exp_avg_dtype = type(4);
  const int64_t n = count * size;
  void* exp_avg_sq = gpu.Allocate(4 * n);
  FillBytes(exp_avg_sq, 0, 4 * n, gpu.stream());
  int16_t* const remainder = dtype == DType::kBFloat16
                                 ? static_cast<int16_t*>(gpu.Random(dtype, n))
                                 : nullptr;
  const TensorList list(
      Split(count, size, dtype, gpu.Random(dtype, n), remainder,
            gpu.Random(DType::kFloat32, n), exp_avg_dtype,
            gpu.Random(exp_avg_dtype, n), exp_avg_sq),
      dtype, gpu.stream());
  AdamWControl* control =
      gpu.Copy(std::vector<AdamWControl>{{.lr = 1e-3, .grad_scale = 1}});
  gpu.Run([&](Stream stream) {
    Enqueue(norm, list, exp_avg_dtype, control, stream);
  });
  gpu.ReportBytes((norm ? 4.0 : 20.0 + 2 * SizeOf(exp_avg_dtype)) * n);
}
BENCHMARK(Cuda)
    ->ArgNames({"norm", "tensors", "size", "bf16", "bf16_m"})
    ->Args({1, 1, 1 << 28, 1, 0})
    ->Args({1, 300, 4096, 1, 0})
    ->Args({0, 1, 1 << 28, 1, 0})
    ->Args({0, 1, 1 << 28, 1, 1})
    ->Args({0, 16, 4096 * 4096, 1, 0})
    ->Args({0, 300, 4096, 1, 0})
    ->Args({0, 1, 1 << 28, 0, 0})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace mimo::kernels
