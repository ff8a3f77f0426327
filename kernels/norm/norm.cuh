// The CUDA kernels of LayerNorm and RmsNorm. RmsNorm is LayerNorm with a mean
// of 0 and no bias: kCentre is false.
//
// A row is held in registers by a group of threads, up to kVectors vectors of
// kWidth elements each; a block is blockDim.y groups of blockDim.x threads, and
// a thread meets the same columns in every row it takes, so weights and the
// partial sums of their gradients stay in registers too.
#ifndef MIMO_KERNELS_NORM_NORM_CUH_
#define MIMO_KERNELS_NORM_NORM_CUH_

#include <algorithm>

#include "absl/log/check.h"
#include "kernels/base/cuda.cuh"
#include "kernels/reduce/row_chunks.h"
#include "kernels/reduce/sum_rows.cuh"

namespace mimo::kernels {

template <typename T>
struct NormForwardPointers {
  const T* x;
  const T* residual;  // null: none
  const T* weight;
  const T* bias = nullptr;  // kCentre only
  T* sum;
  T* y;
  float* mean = nullptr;  // kCentre only
  float* rstd;
};

template <typename T>
struct NormBackwardPointers {
  const T* x;
  const T* weight;
  const float* mean = nullptr;  // kCentre only
  const float* rstd;
  const T* dy;
  T* dx;  // null: not wanted
  bool accumulate_dx;
  float* dweight_partial;  // [gridDim.x, H]; null: not wanted
  float* dbias_partial;    // [gridDim.x, H]; null: not wanted
};

// kWidth elements, read and written in one access.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T values[kWidth];
  __device__ float operator[](int i) const { return ToFloat(values[i]); }
  __device__ void Set(int i, float value) { values[i] = FromFloat<T>(value); }
};
template <int kWidth, typename T>
__device__ Pack<T, kWidth> LoadPack(const T* from) {
  return *reinterpret_cast<const Pack<T, kWidth>*>(from);
}
template <int kWidth, typename T>
__device__ void StorePack(T* to, const Pack<T, kWidth>& pack) {
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

// Keeps packs packed: the compiler may not unpack them before this point for
// use after it, which would take twice the registers.
template <typename T, int kWidth, int kVectors>
__device__ void StayPacked(Pack<T, kWidth> (&packs)[kVectors]) {
  if constexpr (sizeof(T) < 4 && kWidth > 1) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      uint32_t* words = reinterpret_cast<uint32_t*>(&packs[v]);
#pragma unroll
      for (int i = 0; i < sizeof(packs[v]) / 4; ++i)
        asm volatile("" : "+r"(words[i]));
    }
  }
}

// body(v, h) for the vectors of a row that this thread holds, from column h.
template <int kWidth, int kVectors, typename F>
__device__ void ForVectors(int hidden, F body) {
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int h = (threadIdx.x + v * blockDim.x) * kWidth;
    if (h < hidden) body(v, h);
  }
}

// Sums over a group, to all its threads, in a fixed order. `turn` counts the
// sums of the kernel: two in a row use different memory, so that one barrier
// each is enough.
template <int kCount>
__device__ void GroupSum(float (&x)[kCount], int& turn) {
  __shared__ float sums[2][32][kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) x[k] = WarpSum(x[k]);
  const int warps = blockDim.x / kWarp, first = threadIdx.y * warps;
  if (warps == 1) return;
  auto& mine = sums[turn++ % 2];
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      mine[first + threadIdx.x / kWarp][k] = x[k];
  }
  // Barrier 0 is __syncthreads'.
  asm volatile("bar.sync %0, %1;" ::"r"(threadIdx.y + 1), "r"(blockDim.x)
               : "memory");
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    x[k] = 0;
    for (int w = 0; w < warps; ++w) x[k] += mine[first + w][k];
  }
}

template <bool kCentre, typename T, int kWidth, int kVectors, int kThreads,
          int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    NormForwardKernel(const NormForwardPointers<T> p, int64_t tokens,
                      int hidden, float eps) {
  using Vector = Pack<T, kWidth>;
  Vector weight[kVectors], bias[kVectors];
  ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
    weight[v] = LoadPack<kWidth>(p.weight + h);
    if constexpr (kCentre) bias[v] = LoadPack<kWidth>(p.bias + h);
  });
  int turn = 0;
  for (int64_t t = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; t < tokens;
       t += gridDim.x * blockDim.y) {
    const int64_t row = t * hidden;
    Vector s[kVectors];
    ForVectors<kWidth, kVectors>(
        hidden, [&](int v, int h) { s[v] = LoadPack<kWidth>(p.x + row + h); });
    if (p.residual != nullptr) {
      ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
        const Vector r = LoadPack<kWidth>(p.residual + row + h);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) s[v].Set(i, s[v][i] + r[i]);
        StorePack<kWidth>(p.sum + row + h, s[v]);
      });
    }
    float mean[1] = {0};
    if constexpr (kCentre) {
      ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) mean[0] += s[v][i];
      });
      GroupSum(mean, turn);
      StayPacked(s);
      mean[0] /= hidden;
    }
    float squares[1] = {0};
    ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float centred = s[v][i] - mean[0];
        squares[0] += centred * centred;
      }
    });
    GroupSum(squares, turn);
    StayPacked(s);
    StayPacked(weight);
    StayPacked(bias);
    const float r = rsqrtf(squares[0] / hidden + eps);
    if (threadIdx.x == 0) {
      if constexpr (kCentre) p.mean[t] = mean[0];
      p.rstd[t] = r;
    }
    ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
      Vector y;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float n = (s[v][i] - mean[0]) * r;
        y.Set(i, n * weight[v][i] + (kCentre ? bias[v][i] : 0));
      }
      StorePack<kWidth>(p.y + row + h, y);
    });
  }
}

// Adds up the groups' `mine` in order, through memory [H] that they share, and
// writes the block's row of `partial`.
template <int kWidth, int kVectors>
__device__ void WritePartial(const float (&mine)[kVectors][kWidth],
                             float* shared, int hidden, float* partial) {
  for (int group = 0; group < blockDim.y; ++group) {
    if (group == threadIdx.y) {
      float* to = group + 1 < blockDim.y
                      ? shared
                      : partial + blockIdx.x * int64_t{hidden};
      ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
          to[h + i] = (group == 0 ? 0 : shared[h + i]) + mine[v][i];
      });
    }
    __syncthreads();
  }
}

template <bool kCentre, typename T, int kWidth, int kVectors, int kThreads,
          int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    NormBackwardKernel(const NormBackwardPointers<T> p, int64_t tokens,
                       int hidden) {
  using Vector = Pack<T, kWidth>;
  extern __shared__ float shared[];
  Vector weight[kVectors];
  ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
    weight[v] = LoadPack<kWidth>(p.weight + h);
  });
  float dweight[kVectors][kWidth] = {}, dbias[kVectors][kWidth] = {};
  struct Row {
    Vector s[kVectors], dy[kVectors], dx[kVectors];
  };
  const auto load = [&](int64_t t, Row& row) {
    ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
      row.s[v] = LoadPack<kWidth>(p.x + t * hidden + h);
      row.dy[v] = LoadPack<kWidth>(p.dy + t * hidden + h);
      if (p.accumulate_dx) row.dx[v] = LoadPack<kWidth>(p.dx + t * hidden + h);
    });
  };
  int turn = 0;
  const int64_t step = gridDim.x * blockDim.y;
  int64_t t = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  Row row, next;
  if (t < tokens) load(t, row);
  for (; t < tokens; t += step) {
    // The next row is on its way while this one is summed and written.
    if (t + step < tokens) load(t + step, next);
    StayPacked(weight);
    const float mean = kCentre ? p.mean[t] : 0, r = p.rstd[t];
    float sums[kCentre ? 2 : 1] = {};  // of w dy n, and of w dy
    ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float n = (row.s[v][i] - mean) * r, g = row.dy[v][i];
        dweight[v][i] += g * n;
        sums[0] += weight[v][i] * g * n;
        if constexpr (kCentre) {
          dbias[v][i] += g;
          sums[1] += weight[v][i] * g;
        }
      }
    });
    if (p.dx != nullptr) {
      GroupSum(sums, turn);
      StayPacked(row.s);
      StayPacked(row.dy);
      StayPacked(weight);
      const float along = sums[0] / hidden;
      const float level = kCentre ? sums[kCentre] / hidden : 0;
      ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const float n = (row.s[v][i] - mean) * r;
          const float d = r * (weight[v][i] * row.dy[v][i] - level - n * along);
          row.dx[v].Set(i, p.accumulate_dx ? row.dx[v][i] + d : d);
        }
        StorePack<kWidth>(p.dx + t * hidden + h, row.dx[v]);
      });
    }
    row = next;
  }
  if (p.dweight_partial != nullptr)
    WritePartial(dweight, shared, hidden, p.dweight_partial);
  if (kCentre && p.dbias_partial != nullptr)
    WritePartial(dbias, shared, hidden, p.dbias_partial);
}

// Widest row on a GPU.
inline constexpr int64_t kMaxNormColumns = 32768;

// Calls f.template operator()<kWidth, kVectors, kThreads>(block), where
// kThreads is the most that `block` may have. Where the rows at these pointers
// can be read by vectors a thread holds kVectors of them, of wide rows 8; else
// single elements, slower.
template <typename T, int kVectors, typename F>
void DispatchRow(int64_t hidden, std::initializer_list<const void*> rows,
                 F&& f) {
  CHECK_GT(hidden, 0);
  CHECK_LE(hidden, kMaxNormColumns) << "a norm over more columns on a GPU";
  constexpr int kThreads = 512;
  const auto launch = [&]<int kWidth, int kHeld, int kMostThreads>() {
    const int group = CeilDiv(hidden, kWidth * kHeld * kWarp) * kWarp;
    const int groups = std::max(1, kThreads / group);
    f.template operator()<kWidth, kHeld, kMostThreads>(dim3(group, groups));
  };
  DispatchWidth<T>(hidden, rows, [&]<int kWidth>() {
    if constexpr (kWidth > 1) {
      if (hidden <= kThreads * kWidth * kVectors)
        return launch.template operator()<kWidth, kVectors, kThreads>();
      if (hidden <= kThreads * kWidth * 8)
        return launch.template operator()<kWidth, 8, kThreads>();
    }
    launch.template operator()<1, kMaxNormColumns / 1024, 1024>();
  });
}

template <bool kCentre, typename T>
void LaunchNormForward(const NormForwardPointers<T>& p, int64_t tokens,
                       int64_t hidden, float eps, Stream stream) {
  if (tokens == 0) return;
  DispatchRow<T, kCentre ? 2 : 4>(
      hidden, {p.x, p.residual, p.weight, p.bias, p.sum, p.y},
      [&]<int kWidth, int kVectors, int kThreads>(dim3 block) {
        constexpr int kBlocks = 1024 / kThreads;  // of a multiprocessor
        // Four times what runs at once: the last to end are short.
        const int64_t grid =
            std::min<int64_t>(CeilDiv(tokens, block.y), 4 * kBlocks * NumSms());
        NormForwardKernel<kCentre, T, kWidth, kVectors, kThreads, kBlocks>
            <<<grid, block, 0, RawStream(stream)>>>(p, tokens, hidden, eps);
      });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

// Returns the rows of the partial sums.
template <bool kCentre, typename T>
int64_t LaunchNormBackward(const NormBackwardPointers<T>& p, int64_t tokens,
                           int64_t hidden, Stream stream) {
  int64_t grid = 0;
  if (tokens == 0) return grid;
  DispatchRow<T, 2>(
      hidden, {p.x, p.weight, p.dy, p.dx},
      [&]<int kWidth, int kVectors, int kThreads>(dim3 block) {
        grid = std::min<int64_t>(CeilDiv(tokens, block.y), NumSms());
        const int shared = block.y > 1 ? hidden * sizeof(float) : 0;
        NormBackwardKernel<kCentre, T, kWidth, kVectors, kThreads, 1>
            <<<grid, block, shared, RawStream(stream)>>>(p, tokens, hidden);
      });
  MIMO_CUDA_CHECK(cudaGetLastError());
  return grid;
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_NORM_NORM_CUH_
