#include <array>
#include <cmath>
#include <numbers>
#include <type_traits>

#include "absl/log/check.h"
#include "kernels/base/cuda.cuh"
#include "kernels/random/philox.h"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 256;

template <typename T>
__device__ T FromDouble(double x) {
  if constexpr (std::is_same_v<T, float>) {
    return static_cast<float>(x);
  } else {
    return __double2bfloat16(x);
  }
}

// A thread a block of Philox, `counters` of them a row: the row's elements in
// it. value(words, out): the four values of a block.
template <typename T, typename F>
__global__ void FillKernel(RandomFillArgs args, int64_t counters, F value) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = thread / counters;
  if (row * args.columns >= args.size) return;
  const uint64_t first = args.offset + row * args.stride;  // element of the row
  const uint64_t counter = first / 4 + thread % counters;
  double block[4];
  value(Philox(args.seed, args.stream, counter), block);
  T* out = static_cast<T*>(args.out) + row * args.columns;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint64_t c = counter * 4 + k - first;  // huge before `first`
    if (c < args.columns) out[c] = FromDouble<T>(block[k]);
  }
}

template <typename T, typename F>
void Fill(RandomFillArgs args, F value, Stream stream) {
  if (args.size == 0) return;
  if (args.columns == 0) args.columns = args.size;
  const int64_t rows = args.size / args.columns;
  // A row may begin in the middle of a block.
  const int64_t counters = CeilDiv(args.columns + 3, 4);
  FillKernel<T>
      <<<CeilDiv(rows * counters, kThreads), kThreads, 0, RawStream(stream)>>>(
          args, counters, value);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

// Box & Muller 1958; `radius` is in (0, 1].
__device__ void BoxMuller(double radius, double angle, double mean, double std,
                          double* out) {
  const double r = sqrt(-2 * log(radius));
  double sine, cosine;
  sincos(2 * std::numbers::pi * angle, &sine, &cosine);
  out[0] = mean + std * (r * cosine);
  out[1] = mean + std * (r * sine);
}

}  // namespace

void FillNormalCuda(const RandomFillArgs& args, double mean, double std,
                    Stream stream) {
  CHECK_GE(args.size, 0);
  const auto value = [mean, std] __device__(
                         const std::array<uint32_t, 4>& words, double* out) {
    BoxMuller((words[0] + 1.0) * 0x1p-32, words[1] * 0x1p-32, mean, std, out);
    BoxMuller((words[2] + 1.0) * 0x1p-32, words[3] * 0x1p-32, mean, std,
              out + 2);
  };
  DispatchCudaFloat(args.dtype,
                    [&]<typename T>() { Fill<T>(args, value, stream); });
}

}  // namespace mimo::kernels
