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

// Sums over a group, for all its threads, in a fixed order. All groups of a
// block call it together: barriers of their own would be 3 % faster, but a
// block has 15 of those beside __syncthreads', and up to 16 groups; and
// racecheck does not follow them.
template <int kCount>
class GroupSums {
 public:
  __device__ GroupSums() {
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < sizeof(Sums) / 4;
         i += blockDim.x * blockDim.y)
      (&sums()[0][0][0])[i] = 0;
    __syncthreads();
  }

  // Two calls in a row use different memory: one barrier each is enough.
  __device__ void operator()(float (&x)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[k] = WarpSum(x[k]);
    const int warps = blockDim.x / kWarp;
    if (warps == 1) return;
    const int first = threadIdx.y * ((warps + 3) & ~3);
    auto& mine = sums()[turn_];
    turn_ ^= 1;
    if (threadIdx.x % kWarp == 0) {
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        mine[k][first + threadIdx.x / kWarp] = x[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      x[k] = 0;
      for (int w = 0; w < warps; w += 4) {
        const float4 four = *reinterpret_cast<float4*>(&mine[k][first + w]);
        x[k] += (four.x + four.y) + (four.z + four.w);
      }
    }
  }

 private:
  // A group's warps, rounded up to a multiple of 4 by zeros.
  using Sums = float[2][kCount][64];
  static __device__ Sums& sums() {
    __shared__ alignas(16) Sums sums;
    return sums;
  }
  int turn_ = 0;
};

template <bool kCentre, typename T, int kWidth, int kVectors, int kThreads,
          int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    NormForwardKernel(const NormForwardPointers<T> p, int64_t tokens,
                      int hidden, float eps) {
  using Vector = Pack<T, kWidth>;
  const float per_column = 1.0f / hidden;
  Vector weight[kVectors], bias[kVectors];
  ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
    weight[v] = LoadPack<kWidth>(p.weight + h);
    if constexpr (kCentre) bias[v] = LoadPack<kWidth>(p.bias + h);
  });
  GroupSums<1> group_sum;
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < tokens;
       first += gridDim.x * blockDim.y) {
    const int64_t t = first + threadIdx.y, row = t * hidden;
    // A group without a row only meets the barriers.
    const int columns = t < tokens ? hidden : 0;
    Vector s[kVectors];
    ForVectors<kWidth, kVectors>(
        columns, [&](int v, int h) { s[v] = LoadPack<kWidth>(p.x + row + h); });
    if (p.residual != nullptr) {
      ForVectors<kWidth, kVectors>(columns, [&](int v, int h) {
        const Vector r = LoadPack<kWidth>(p.residual + row + h);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) s[v].Set(i, s[v][i] + r[i]);
        StorePack<kWidth>(p.sum + row + h, s[v]);
      });
    }
    float mean[1] = {0};
    if constexpr (kCentre) {
      ForVectors<kWidth, kVectors>(columns, [&](int v, int h) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) mean[0] += s[v][i];
      });
      group_sum(mean);
      StayPacked(s);
      mean[0] *= per_column;
    }
    float squares[1] = {0};
    ForVectors<kWidth, kVectors>(columns, [&](int v, int h) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float centred = s[v][i] - mean[0];
        squares[0] += centred * centred;
      }
    });
    group_sum(squares);
    StayPacked(s);
    StayPacked(weight);
    StayPacked(bias);
    const float r = rsqrtf(squares[0] * per_column + eps);
    if (threadIdx.x == 0 && t < tokens) {
      if constexpr (kCentre) p.mean[t] = mean[0];
      p.rstd[t] = r;
    }
    ForVectors<kWidth, kVectors>(columns, [&](int v, int h) {
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

// Memory that WritePartial's groups share.
inline int64_t PartialBytes(dim3 block, int kept) {
  return block.y > 1 ? block.x * kept * sizeof(float) : 0;
}

// Adds up the groups' sums in order and writes the block's row of `partial`.
template <int kWidth, int kVectors>
__device__ void WritePartial(float (&sums)[kVectors][kWidth], float* shared,
                             int hidden, float* partial) {
  constexpr int kStore = kWidth == 1 ? 1 : kVector<float>;
  const bool is_first = threadIdx.y == 0;
  const bool is_last = threadIdx.y + 1 == blockDim.y;
  for (int group = 0; group < blockDim.y; ++group) {
    if (group == threadIdx.y) {
      ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          float& kept = shared[(v * kWidth + i) * blockDim.x + threadIdx.x];
          if (!is_first) sums[v][i] += kept;
          if (!is_last) kept = sums[v][i];
        }
        if (!is_last) return;
#pragma unroll
        for (int i = 0; i < kWidth; i += kStore) {
          Store<kStore>(partial + blockIdx.x * int64_t{hidden} + h + i,
                        reinterpret_cast<float(&)[kStore]>(sums[v][i]));
        }
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
  const float per_column = 1.0f / hidden;
  extern __shared__ float shared[];
  Vector weight[kVectors];
  ForVectors<kWidth, kVectors>(hidden, [&](int v, int h) {
    weight[v] = LoadPack<kWidth>(p.weight + h);
  });
  float dweight[kVectors][kWidth] = {}, dbias[kVectors][kWidth] = {};
  GroupSums<kCentre ? 2 : 1> group_sum;
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y; first < tokens;
       first += gridDim.x * blockDim.y) {
    const int64_t t = first + threadIdx.y, row = t * hidden;
    // A group without a row only meets the barriers.
    const int columns = t < tokens ? hidden : 0;
    Vector s[kVectors], dy[kVectors], dx[kVectors];
    ForVectors<kWidth, kVectors>(columns, [&](int v, int h) {
      s[v] = LoadPack<kWidth>(p.x + row + h);
      dy[v] = LoadPack<kWidth>(p.dy + row + h);
      if (p.accumulate_dx) dx[v] = LoadPack<kWidth>(p.dx + row + h);
    });
    StayPacked(weight);
    const float mean = kCentre && columns > 0 ? p.mean[t] : 0;
    const float r = columns > 0 ? p.rstd[t] : 0;
    float sums[kCentre ? 2 : 1] = {};  // of w dy (s - m), and of w dy
    ForVectors<kWidth, kVectors>(columns, [&](int v, int h) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float g = dy[v][i], product = g * (s[v][i] - mean);
        dweight[v][i] += product * r;
        sums[0] += weight[v][i] * product;
        if constexpr (kCentre) {
          dbias[v][i] += g;
          sums[1] += weight[v][i] * g;
        }
      }
    });
    if (p.dx == nullptr) continue;
    group_sum(sums);
    StayPacked(s);
    StayPacked(dy);
    StayPacked(weight);
    const float along = r * r * (r * sums[0] * per_column);
    const float level = kCentre ? r * sums[kCentre] * per_column : 0;
    ForVectors<kWidth, kVectors>(columns, [&](int v, int h) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float d =
            r * (weight[v][i] * dy[v][i]) - ((s[v][i] - mean) * along + level);
        dx[v].Set(i, p.accumulate_dx ? dx[v][i] + d : d);
      }
      StorePack<kWidth>(p.dx + row + h, dx[v]);
    });
  }
  if (p.dweight_partial != nullptr)
    WritePartial(dweight, shared, hidden, p.dweight_partial);
  if (kCentre && p.dbias_partial != nullptr)
    WritePartial(dbias, shared, hidden, p.dbias_partial);
}

// Widest row on a GPU.
inline constexpr int64_t kMaxNormColumns = 32768;

// Calls f.template operator()<kWidth, kVectors, kMostThreads>(block). Where the
// rows at these pointers can be read by vectors a thread holds kVectors of
// them, of wide rows 8, in blocks of some kThreads; else single elements,
// slower.
template <typename T, int kVectors, int kThreads, typename F>
void DispatchRow(int64_t hidden, std::initializer_list<const void*> rows,
                 F&& f) {
  CHECK_GT(hidden, 0);
  CHECK_LE(hidden, kMaxNormColumns) << "a norm over more columns on a GPU";
  const auto launch = [&]<int kWidth, int kHeld, int kMostThreads>() {
    const int group = CeilDiv(hidden, kWidth * kHeld * kWarp) * kWarp;
    // Groups share 32 KiB to add up a row of sums.
    const bool is_wide = group * kWidth * kHeld > 8192;
    const int groups = is_wide ? 1 : std::max(1, kThreads / group);
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

// The shapes of blocks below were the fastest of some ten on an H100 at
// 8192 x 4096 (RmsNorm) and 18464 x 1024 (LayerNorm) bfloat16.
template <bool kCentre, typename T>
void LaunchNormForward(const NormForwardPointers<T>& p, int64_t tokens,
                       int64_t hidden, float eps, Stream stream) {
  if (tokens == 0) return;
  DispatchRow<T, 4, kCentre ? 256 : 512>(
      hidden, {p.x, p.residual, p.weight, p.bias, p.sum, p.y},
      [&]<int kWidth, int kVectors, int kThreads>(dim3 block) {
        // Of a multiprocessor at once.
        constexpr int kBlocks = kThreads == 1024 ? 1 : kCentre ? 3 : 2;
        // Four times as many in all: who is done early takes more.
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
  DispatchRow<T, 2, kCentre ? 512 : 768>(
      hidden, {p.x, p.weight, p.dy, p.dx},
      [&]<int kWidth, int kVectors, int kThreads>(dim3 block) {
        grid = std::min<int64_t>(CeilDiv(tokens, block.y), NumSms());
        NormBackwardKernel<kCentre, T, kWidth, kVectors, kThreads, 1>
            <<<grid, block, PartialBytes(block, kWidth * kVectors),
               RawStream(stream)>>>(p, tokens, hidden);
      });
  MIMO_CUDA_CHECK(cudaGetLastError());
  return grid;
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_NORM_NORM_CUH_
