#include <algorithm>

#include "absl/log/check.h"
#include "kernels/base/cuda.cuh"
#include "kernels/elementwise/copy_units.cuh"
#include "kernels/patch/patches.h"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 128;

// A line of an image a block; consecutive threads take consecutive Units of it,
// of which a line has `width` and a patch's part of it `run`.
template <bool kForward, typename Unit>
__global__ void PatchKernel(const Unit* in, Unit* out, int channels, int height,
                            int width, int size, int run) {
  const int line = blockIdx.x;  // (n * C + c) * H + h
  const int h = line % height, c = line / height % channels;
  const int n = line / height / channels;
  const int i = h / size, grid_h = height / size, grid_w = width / run;
  const int64_t patch = int64_t{channels} * size * run;
  const int64_t row = (int64_t{n} * grid_h + i) * grid_w;
  const int64_t column = (int64_t{c} * size + h % size) * run;
  for (int w = threadIdx.x; w < width; w += kThreads) {
    const int j = w / run;
    const bool dropped = i >= grid_h || j >= grid_w;
    const int64_t pixel = int64_t{line} * width + w;
    const int64_t element = (row + j) * patch + column + w % run;
    if constexpr (kForward) {
      if (!dropped) out[element] = in[pixel];
    } else {
      out[pixel] = dropped ? Unit{} : in[element];
    }
  }
}

template <bool kForward>
void LaunchPatches(const PatchArgs& args, Stream stream) {
  CHECK_GE(args.images, 0);
  CHECK_GT(args.channels, 0);
  CHECK_GT(args.patch_size, 0);
  CHECK_GE(args.height, args.patch_size);
  CHECK_GE(args.width, args.patch_size);
  if (args.images == 0) return;
  const int64_t size = SizeOf(args.dtype);
  const int64_t width = args.width * size, run = args.patch_size * size;
  DispatchUnit({width, run}, {args.in, args.out}, [&]<typename Unit>() {
    PatchKernel<kForward, Unit><<<args.images * args.channels * args.height,
                                  kThreads, 0, RawStream(stream)>>>(
        static_cast<const Unit*>(args.in), static_cast<Unit*>(args.out),
        args.channels, args.height, width / sizeof(Unit), args.patch_size,
        run / sizeof(Unit));
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

// A row of y, [H], a block.
template <typename T, int kWidth>
__global__ void TokensForwardKernel(const T* x, const T* class_token,
                                    const T* position, T* y, int patches,
                                    int64_t hidden) {
  const int offset = class_token == nullptr ? 0 : 1;
  const int tokens = offset + patches;
  const int64_t n = blockIdx.x / tokens, token = blockIdx.x % tokens;
  const T* from = token < offset ? class_token
                                 : x + (n * patches + token - offset) * hidden;
  for (int64_t h = threadIdx.x * kWidth; h < hidden; h += kThreads * kWidth) {
    float sum[kWidth], p[kWidth];
    Load<kWidth>(from + h, sum);
    Load<kWidth>(position + token * hidden + h, p);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] += p[i];
    Store<kWidth>(y + blockIdx.x * hidden + h, sum);
  }
}

// out = beta * out + sum
template <int kWidth>
__device__ void Accumulate(const float (&sum)[kWidth], float beta, float* out) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    out[i] = (beta == 0 ? 0 : beta * out[i]) + sum[i];
}

// Token blockIdx.x, kWidth columns a thread: copies dy to dx and sums it over
// the images in order.
template <typename T, int kWidth>
__global__ void TokensBackwardKernel(const T* __restrict__ dy,
                                     T* __restrict__ dx, float* dclass,
                                     float* dposition, float dclass_beta,
                                     float dposition_beta, int64_t images,
                                     int64_t patches, int64_t hidden,
                                     int64_t offset) {
  const int64_t token = blockIdx.x, tokens = offset + patches;
  const int64_t h = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kWidth;
  if (h >= hidden) return;
  float sum[kWidth] = {};
#pragma unroll 4
  for (int64_t n = 0; n < images; ++n) {
    float g[kWidth];
    Load<kWidth>(dy + (n * tokens + token) * hidden + h, g);
    if (dx != nullptr && token >= offset)
      Store<kWidth>(dx + (n * patches + token - offset) * hidden + h, g);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] += g[i];
  }
  if (dclass != nullptr && token == 0) Accumulate(sum, dclass_beta, dclass + h);
  if (dposition != nullptr)
    Accumulate(sum, dposition_beta, dposition + token * hidden + h);
}

}  // namespace

void PatchForwardCuda(const PatchArgs& args, Stream stream) {
  LaunchPatches<true>(args, stream);
}

void PatchBackwardCuda(const PatchArgs& args, Stream stream) {
  LaunchPatches<false>(args, stream);
}

void VisionTokensForwardCuda(const VisionTokensForwardArgs& args,
                             Stream stream) {
  CHECK_GE(args.images, 0);
  CHECK_GT(args.patches, 0);
  CHECK_GT(args.hidden, 0);
  if (args.images == 0) return;
  const int64_t tokens = args.patches + (args.class_token == nullptr ? 0 : 1);
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    DispatchWidth<T>(
        args.hidden, {args.x, args.class_token, args.position, args.y},
        [&]<int kWidth>() {
          TokensForwardKernel<T, kWidth>
              <<<args.images * tokens, kThreads, 0, RawStream(stream)>>>(
                  static_cast<const T*>(args.x),
                  static_cast<const T*>(args.class_token),
                  static_cast<const T*>(args.position), static_cast<T*>(args.y),
                  args.patches, args.hidden);
        });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

void VisionTokensBackwardCuda(const VisionTokensBackwardArgs& args,
                              Stream stream) {
  CHECK_GE(args.images, 0);
  CHECK_GT(args.patches, 0);
  CHECK_GT(args.hidden, 0);
  CHECK(args.class_token || args.dclass == nullptr)
      << "VisionTokens: the gradient of a class token that is not there";
  const int64_t offset = args.class_token ? 1 : 0;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    DispatchWidth<T>(args.hidden, {args.dy, args.dx}, [&]<int kWidth>() {
      const dim3 grid(offset + args.patches,
                      CeilDiv(args.hidden / kWidth, kThreads));
      TokensBackwardKernel<T, kWidth><<<grid, kThreads, 0, RawStream(stream)>>>(
          static_cast<const T*>(args.dy), static_cast<T*>(args.dx),
          static_cast<float*>(args.dclass), static_cast<float*>(args.dposition),
          args.dclass_beta, args.dposition_beta, args.images, args.patches,
          args.hidden, offset);
    });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
