// What attention_simple_*.cu share: float32 arithmetic on tiles in shared
// memory, without tensor cores. A block's 256 threads stand as 16 x 16.
#ifndef MIMO_KERNELS_ATTENTION_ATTENTION_SIMPLE_CUH_
#define MIMO_KERNELS_ATTENTION_ATTENTION_SIMPLE_CUH_

#include "absl/log/check.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/visible_keys.h"
#include "kernels/base/cuda.cuh"

namespace mimo::kernels::simple {

constexpr int kSide = 16;
constexpr int kThreads = kSide * kSide;

// Tiles for head sizes up to kDim.
template <int kDim>
struct Tiles {
  static constexpr int kTile = kDim <= 128 ? 64 : 32;  // rows
  static constexpr int kPer = kTile / kSide;           // rows of a thread
  static constexpr int kPitch = kDim + 4;  // 4 columns off the next row's banks
  static constexpr int kVectors = kDim / (4 * kSide);  // float4 of a thread
  static constexpr int kScorePitch = kTile + 1;
  static constexpr int kRowsFloats = kTile * kPitch;
  static constexpr int kScoreFloats = kTile * kScorePitch;

  // Thread (y, x) holds rows y + 16 i; of scores the columns x + 16 j, of
  // vectors 4 (x + 16 j) and the next three.
  using Scores = float[kPer][kPer];
  using Vectors = float4[kPer][kVectors];

  // to[kTile, kPitch] = from[rows, dim], zero around it.
  template <typename T>
  static __device__ void LoadRows(const T* from, int64_t stride, int64_t rows,
                                  int dim, float* to) {
    for (int at = threadIdx.x; at < kTile * kDim; at += kThreads) {
      const int r = at / kDim, d = at % kDim;
      to[r * kPitch + d] =
          r < rows && d < dim ? ToFloat(from[r * stride + d]) : 0;
    }
  }

  template <typename T>
  static __device__ void StoreRows(const Vectors& from, int64_t stride,
                                   int64_t rows, int dim, T* to) {
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int r = threadIdx.x / kSide + i * kSide;
      if (r >= rows) continue;
#pragma unroll
      for (int j = 0; j < kVectors; ++j) {
        const int d = 4 * (threadIdx.x % kSide + j * kSide);
        const float values[] = {from[i][j].x, from[i][j].y, from[i][j].z,
                                from[i][j].w};
#pragma unroll
        for (int l = 0; l < 4; ++l) {
          if (d + l < dim) to[r * stride + d + l] = FromFloat<T>(values[l]);
        }
      }
    }
  }

  // z = a b^T of two tiles of rows.
  static __device__ void Dots(const float* a, const float* b, Scores& z) {
    a += threadIdx.x / kSide * kPitch;
    b += threadIdx.x % kSide * kPitch;
#pragma unroll
    for (int i = 0; i < kPer; ++i)
#pragma unroll
      for (int j = 0; j < kPer; ++j) z[i][j] = 0;
    for (int d = 0; d < kDim; d += 4) {
      float4 x[kPer], y[kPer];
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        x[i] = *reinterpret_cast<const float4*>(a + i * kSide * kPitch + d);
        y[i] = *reinterpret_cast<const float4*>(b + i * kSide * kPitch + d);
      }
#pragma unroll
      for (int i = 0; i < kPer; ++i)
#pragma unroll
        for (int j = 0; j < kPer; ++j) {
          z[i][j] += x[i].x * y[j].x + x[i].y * y[j].y + x[i].z * y[j].z +
                     x[i].w * y[j].w;
        }
    }
  }

  static __device__ void StoreScores(const Scores& z, float* to) {
#pragma unroll
    for (int i = 0; i < kPer; ++i)
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        to[(threadIdx.x / kSide + i * kSide) * kScorePitch +
           threadIdx.x % kSide + j * kSide] = z[i][j];
      }
  }

  // sum += z rows, or z^T rows, of a tile of scores and one of rows.
  template <bool kTranspose>
  static __device__ void AddProduct(const float* z, const float* rows,
                                    Vectors& sum) {
    for (int k = 0; k < kTile; ++k) {
      float4 y[kVectors];
#pragma unroll
      for (int j = 0; j < kVectors; ++j) {
        y[j] = *reinterpret_cast<const float4*>(
            rows + k * kPitch + 4 * (threadIdx.x % kSide + j * kSide));
      }
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const int r = threadIdx.x / kSide + i * kSide;
        const float x =
            kTranspose ? z[k * kScorePitch + r] : z[r * kScorePitch + k];
#pragma unroll
        for (int j = 0; j < kVectors; ++j) {
          sum[i][j].x += x * y[j].x;
          sum[i][j].y += x * y[j].y;
          sum[i][j].z += x * y[j].z;
          sum[i][j].w += x * y[j].w;
        }
      }
    }
  }
};

template <typename Args>
void Launch(void (*kernel)(Args), dim3 grid, int threads, int64_t floats,
            const Args& args, Stream stream) {
  const int bytes = floats * sizeof(float);
  MIMO_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<grid, threads, bytes, RawStream(stream)>>>(args);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

// Calls f.template operator()<T, kDim>().
template <typename F>
void Dispatch(DType dtype, int64_t dim, F&& f) {
  DispatchCudaFloat(dtype, [&]<typename T>() {
    if (dim <= 64) {
      f.template operator()<T, 64>();
    } else if (dim <= 128) {
      f.template operator()<T, 128>();
    } else {
      CHECK_LE(dim, 256) << "Attention: a head's size on a GPU";
      f.template operator()<T, 256>();
    }
  });
}

inline dim3 Grid(int64_t rows, int64_t tile, int64_t heads, int64_t batch) {
  return dim3(CeilDiv(rows, tile), heads, batch);
}

}  // namespace mimo::kernels::simple

#endif  // MIMO_KERNELS_ATTENTION_ATTENTION_SIMPLE_CUH_
