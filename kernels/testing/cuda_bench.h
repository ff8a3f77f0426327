// CudaBench: one Google Benchmark case of an op on the GPU.
//
//   void Forward(benchmark::State& state) {
//     CudaBench gpu(state);
//     if (!gpu) return;  // no GPU: the case is listed as skipped
//     void* x = gpu.Random(DType::kBFloat16, n);
//     gpu.Run([&](Stream stream) { Op({.x = x, ...}, stream); });
//     gpu.ReportBytes(2.0 * n * 2);
//   }
//   BENCHMARK(Forward)->Args(...)->UseManualTime();
//
// Every iteration is timed by events on the op's stream, after 256 MiB were
// written: the second-level cache holds nothing of the op's, and what it must
// write back for its predecessor stands for what it leaves to its successor.
#ifndef MIMO_KERNELS_TESTING_CUDA_BENCH_H_
#define MIMO_KERNELS_TESTING_CUDA_BENCH_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "benchmark/benchmark.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo {

class CudaBench {
 public:
  explicit CudaBench(benchmark::State& state);
  CudaBench(const CudaBench&) = delete;
  CudaBench& operator=(const CudaBench&) = delete;
  ~CudaBench();

  // Whether there is a GPU to run on.
  explicit operator bool() const { return stream_.raw != nullptr; }

  // GPU memory that lives as long as this: n float32 or bfloat16 uniform on
  // [-scale, scale); a copy of host values; bytes of no particular value.
  void* Random(DType dtype, int64_t n, float scale = 1);
  template <typename T>
  T* Copy(const std::vector<T>& values) {
    return static_cast<T*>(CopyOf(values.data(), values.size() * sizeof(T)));
  }
  void* Allocate(int64_t bytes);

  // The benchmark's loop. `op` enqueues the work; it runs for a fifth of a
  // second before, for the clock to settle at what the power limit leaves. Adds
  // the column median (seconds). With `beside`, that runs after each iteration,
  // so that both have the same clock; adds the column beside, its median.
  using Op = absl::FunctionRef<void(Stream)>;
  void Run(Op op, std::optional<Op> beside = {});

  // After Run, of the median. TB/s (1e12 bytes) and copy%, the share of
  // CudaCopyBytesPerSecond(); `bytes` is an iteration's by the op's header.
  void ReportBytes(double bytes);
  // TFLOP/s and, with a floor (FLOP a second), floor%.
  void ReportFlops(double flops, double floor = 0);

  double median_seconds() const { return median_; }
  Stream stream() const { return stream_; }

 private:
  void* CopyOf(const void* values, int64_t bytes);

  benchmark::State& state_;
  Stream stream_;  // raw is null without a GPU
  std::vector<void*> memory_;
  double median_ = 0;
};

// Seconds of one run of `op` on a CUDA stream, by events, after the cache was
// flushed; and the median of `times` such runs.
double CudaSeconds(Stream stream, absl::FunctionRef<void(Stream)> op);
double MedianCudaSeconds(Stream stream, int times,
                         absl::FunctionRef<void(Stream)> op);

// Bytes a second, read and written both counted, of a copy of 1 GiB on the GPU;
// measured once a process.
double CudaCopyBytesPerSecond();

}  // namespace mimo

#endif  // MIMO_KERNELS_TESTING_CUDA_BENCH_H_
