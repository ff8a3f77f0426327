#include <algorithm>

#include "kernels/base/parallel.h"
#include "kernels/patch/patches.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {
namespace {

// Calls copy(pixel, patch) for every run of patch_size elements along a row of
// an image: where it starts in the images and in the patches.
template <typename F>
void ForPatchRows(const PatchArgs& args, F copy) {
  const int64_t size = args.patch_size;
  const int64_t grid_h = args.height / size, grid_w = args.width / size;
  const int64_t patch = args.channels * size * size;
  ParallelFor(args.images * grid_h, RowGrain(grid_w * patch),
              [&](int64_t begin, int64_t end) {
                for (int64_t r = begin; r < end; ++r) {
                  const int64_t n = r / grid_h, i = r % grid_h;
                  for (int64_t j = 0; j < grid_w; ++j) {
                    for (int64_t ca = 0; ca < args.channels * size; ++ca) {
                      const int64_t c = ca / size, a = ca % size;
                      const int64_t line =
                          (n * args.channels + c) * args.height + i * size + a;
                      copy(line * args.width + j * size,
                           (r * grid_w + j) * patch + ca * size);
                    }
                  }
                }
              });
}

void CheckPatchArgs(const PatchArgs& args) {
  CHECK_GE(args.images, 0);
  CHECK_GT(args.channels, 0);
  CHECK_GT(args.patch_size, 0);
  CHECK_GE(args.height, args.patch_size);
  CHECK_GE(args.width, args.patch_size);
}

template <typename T>
void TokensForward(const VisionTokensForwardArgs& args) {
  const int64_t hidden = args.hidden;
  const int64_t offset = args.class_token == nullptr ? 0 : 1;
  const int64_t tokens = offset + args.patches;
  ParallelFor(
      args.images * tokens, RowGrain(hidden), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const int64_t n = r / tokens, token = r % tokens;
          const T* x = token < offset
                           ? static_cast<const T*>(args.class_token)
                           : static_cast<const T*>(args.x) +
                                 (n * args.patches + token - offset) * hidden;
          const T* position =
              static_cast<const T*>(args.position) + token * hidden;
          T* y = static_cast<T*>(args.y) + r * hidden;
#pragma omp simd
          for (int64_t h = 0; h < hidden; ++h) y[h] = x[h] + position[h];
        }
      });
}

// out[h] = beta * out[h] + sum_n dy[n * stride + h]
template <typename T>
void SumOverImages(const T* dy, int64_t images, int64_t stride, int64_t hidden,
                   float beta, T* out) {
  for (int64_t h = 0; h < hidden; ++h)
    out[h] = beta == 0 ? T{0} : static_cast<T>(beta) * out[h];
  for (int64_t n = 0; n < images; ++n) {
    const T* row = dy + n * stride;
#pragma omp simd
    for (int64_t h = 0; h < hidden; ++h) out[h] += row[h];
  }
}

template <typename T>
void TokensBackward(const VisionTokensBackwardArgs& args) {
  const int64_t hidden = args.hidden;
  const int64_t offset = args.class_token ? 1 : 0;
  const int64_t tokens = offset + args.patches;
  const T* dy = static_cast<const T*>(args.dy);
  if (args.dx != nullptr) {
    ParallelFor(args.images, RowGrain(args.patches * hidden),
                [&](int64_t begin, int64_t end) {
                  for (int64_t n = begin; n < end; ++n) {
                    std::copy_n(
                        dy + (n * tokens + offset) * hidden,
                        args.patches * hidden,
                        static_cast<T*>(args.dx) + n * args.patches * hidden);
                  }
                });
  }
  if (args.dclass != nullptr) {
    SumOverImages(dy, args.images, tokens * hidden, hidden, args.dclass_beta,
                  static_cast<T*>(args.dclass));
  }
  if (args.dposition != nullptr) {
    ParallelFor(tokens, RowGrain(args.images * hidden),
                [&](int64_t begin, int64_t end) {
                  for (int64_t token = begin; token < end; ++token) {
                    SumOverImages(
                        dy + token * hidden, args.images, tokens * hidden,
                        hidden, args.dposition_beta,
                        static_cast<T*>(args.dposition) + token * hidden);
                  }
                });
  }
}

}  // namespace

void PatchForwardCpu(const PatchArgs& args) {
  CheckPatchArgs(args);
  DispatchCpuFloat(args.dtype, [&]<typename T>() {
    const T* in = static_cast<const T*>(args.in);
    T* out = static_cast<T*>(args.out);
    ForPatchRows(args, [&](int64_t pixel, int64_t patch) {
      std::copy_n(in + pixel, args.patch_size, out + patch);
    });
  });
}

void PatchBackwardCpu(const PatchArgs& args) {
  CheckPatchArgs(args);
  DispatchCpuFloat(args.dtype, [&]<typename T>() {
    const T* in = static_cast<const T*>(args.in);
    T* out = static_cast<T*>(args.out);
    if (args.height % args.patch_size != 0 ||
        args.width % args.patch_size != 0) {
      std::fill_n(out, args.images * args.channels * args.height * args.width,
                  T{0});
    }
    ForPatchRows(args, [&](int64_t pixel, int64_t patch) {
      std::copy_n(in + patch, args.patch_size, out + pixel);
    });
  });
}

void VisionTokensForwardCpu(const VisionTokensForwardArgs& args) {
  CHECK_GE(args.images, 0);
  CHECK_GT(args.patches, 0);
  CHECK_GT(args.hidden, 0);
  DispatchCpuFloat(args.dtype, [&]<typename T>() { TokensForward<T>(args); });
}

void VisionTokensBackwardCpu(const VisionTokensBackwardArgs& args) {
  CHECK_GE(args.images, 0);
  CHECK_GT(args.patches, 0);
  CHECK_GT(args.hidden, 0);
  CHECK(args.class_token || args.dclass == nullptr)
      << "VisionTokens: the gradient of a class token that is not there";
  DispatchCpuFloat(args.dtype, [&]<typename T>() { TokensBackward<T>(args); });
}

}  // namespace mimo::kernels
