// The elementwise ops on the GPU.
#include "benchmark/benchmark.h"
#include "kernels/elementwise/add.h"
#include "kernels/elementwise/cast.h"
#include "kernels/elementwise/copy_2d.h"
#include "kernels/testing/cuda_bench.h"

namespace mimo::kernels {
namespace {

constexpr DType kDType = DType::kBFloat16;

void AddCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t size = state.range(0);
  const AddArgs args = {.a = gpu.Random(kDType, size),
                        .b = gpu.Random(kDType, size),
                        .out = gpu.Allocate(2 * size),
                        .size = size,
                        .dtype = kDType};
  gpu.Run([&](Stream stream) { Add(args, stream); });
  gpu.ReportBytes(3.0 * 2 * size);
}

// Argument 1: from float32 to bfloat16; 0: back.
void CastCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t size = state.range(0);
  const DType from = state.range(1) != 0 ? DType::kFloat32 : kDType;
  const DType to = state.range(1) != 0 ? kDType : DType::kFloat32;
  const CastArgs args = {.src = gpu.Random(from, size),
                         .src_dtype = from,
                         .dst = gpu.Allocate(SizeOf(to) * size),
                         .dst_dtype = to,
                         .size = size};
  gpu.Run([&](Stream stream) { Cast(args, stream); });
  gpu.ReportBytes(6.0 * size);
}

// Keys and values, the last two thirds of a fused projection.
void Copy2dCuda(benchmark::State& state) {
  CudaBench gpu(state);
  if (!gpu) return;
  const int64_t rows = state.range(0), columns = state.range(1);
  const int64_t src_stride = columns / 2 * 3;
  const Copy2dArgs args = {.src = gpu.Random(kDType, rows * src_stride),
                           .src_stride = src_stride,
                           .dst = gpu.Allocate(2 * rows * columns),
                           .dst_stride = columns,
                           .rows = rows,
                           .columns = columns,
                           .dtype = kDType};
  gpu.Run([&](Stream stream) { Copy2d(args, stream); });
  gpu.ReportBytes(2.0 * 2 * rows * columns);
}

BENCHMARK(AddCuda)->Arg(8192 * 4096)->UseManualTime();
BENCHMARK(CastCuda)
    ->Args({8192 * 4096, 1})
    ->Args({8192 * 4096, 0})
    ->UseManualTime();
BENCHMARK(Copy2dCuda)->Args({8192, 8192})->UseManualTime();

}  // namespace
}  // namespace mimo::kernels
