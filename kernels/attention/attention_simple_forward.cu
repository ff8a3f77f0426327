// The forward for every shape: a tile of queries a block, or a query where they
// are few.
#include <cmath>

#include "kernels/attention/attention_simple.cuh"

namespace mimo::kernels {
namespace simple {
namespace {

constexpr float kInfinity = INFINITY;

// Over the 16 threads of a row of a tile.
__device__ float RowMax(float x) {
#pragma unroll
  for (int lane = kSide / 2; lane > 0; lane /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, lane));
  return x;
}
__device__ float RowSum(float x) {
#pragma unroll
  for (int lane = kSide / 2; lane > 0; lane /= 2)
    x += __shfl_xor_sync(0xffffffff, x, lane);
  return x;
}

// exp(z - max) where max may be -inf because nothing was seen yet.
__device__ float ExpBelow(float z, float max) {
  return max == -kInfinity ? 0 : expf(z - max);
}

// Block (x, n, b): tile x of the queries of head n of sample b.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    ForwardTileKernel(const __grid_constant__ AttentionForwardArgs args) {
  using Tile = Tiles<kDim>;
  extern __shared__ float4 shared[];
  float* q = reinterpret_cast<float*>(shared);
  float* kv = q + Tile::kRowsFloats;
  float* p = kv + Tile::kRowsFloats;

  const AttentionShape& s = args.shape;
  const int dim = s.head_dim, n = blockIdx.y, b = blockIdx.z;
  const Sample sample = SampleOf(s, args.key_lengths, args.cu_seqlens, b);
  // Later queries see more keys: they come first.
  const int64_t i0 = int64_t{gridDim.x - 1 - blockIdx.x} * Tile::kTile;
  if (i0 >= sample.queries) return;
  const int64_t rows = std::min<int64_t>(Tile::kTile, sample.queries - i0);
  const int64_t row = sample.first_query + i0;
  const int64_t kv_at =
      KeyOffset(sample, b, args.kv_stride, args.kv_batch_stride) +
      n / (s.heads / s.kv_heads) * dim;
  Tile::LoadRows(static_cast<const T*>(args.q) + row * args.q_stride + n * dim,
                 args.q_stride, rows, dim, q);

  float max[Tile::kPer], sum[Tile::kPer];
  typename Tile::Vectors out = {};
#pragma unroll
  for (int i = 0; i < Tile::kPer; ++i) max[i] = -kInfinity, sum[i] = 0;
  const int64_t all_keys = sample.VisibleKeys(i0 + rows - 1);
  const float scale = s.scale;
  for (int64_t j0 = 0; j0 < all_keys; j0 += Tile::kTile) {
    const int64_t keys = all_keys - j0, at = kv_at + j0 * args.kv_stride;
    __syncthreads();
    Tile::LoadRows(static_cast<const T*>(args.k) + at, args.kv_stride, keys,
                   dim, kv);
    __syncthreads();
    typename Tile::Scores z;
    Tile::Dots(q, kv, z);
#pragma unroll
    for (int i = 0; i < Tile::kPer; ++i) {
      const int r = threadIdx.x / kSide + i * kSide;
      const int64_t visible =
          r < rows ? sample.VisibleKeys(i0 + r) - j0 : int64_t{0};
      float largest = max[i];
#pragma unroll
      for (int j = 0; j < Tile::kPer; ++j) {
        const int c = threadIdx.x % kSide + j * kSide;
        z[i][j] = c < visible ? scale * z[i][j] : -kInfinity;
        largest = fmaxf(largest, z[i][j]);
      }
      largest = RowMax(largest);
      float row_sum = 0;
#pragma unroll
      for (int j = 0; j < Tile::kPer; ++j) {
        z[i][j] = ExpBelow(z[i][j], largest);
        row_sum += z[i][j];
      }
      const float shrink = ExpBelow(max[i], largest);
      sum[i] = sum[i] * shrink + RowSum(row_sum);
      max[i] = largest;
#pragma unroll
      for (int j = 0; j < Tile::kVectors; ++j) {
        out[i][j].x *= shrink;
        out[i][j].y *= shrink;
        out[i][j].z *= shrink;
        out[i][j].w *= shrink;
      }
    }
    Tile::StoreScores(z, p);
    __syncthreads();
    Tile::LoadRows(static_cast<const T*>(args.v) + at, args.kv_stride, keys,
                   dim, kv);
    __syncthreads();
    Tile::template AddProduct<false>(p, kv, out);
  }

  float* lse = static_cast<float*>(args.lse) + (b * s.heads + n) * s.seq_q + i0;
#pragma unroll
  for (int i = 0; i < Tile::kPer; ++i) {
    const int r = threadIdx.x / kSide + i * kSide;
    if (r < rows && threadIdx.x % kSide == 0) lse[r] = max[i] + logf(sum[i]);
    const float inverse = sum[i] == 0 ? 0 : 1 / sum[i];
#pragma unroll
    for (int j = 0; j < Tile::kVectors; ++j) {
      out[i][j].x *= inverse;
      out[i][j].y *= inverse;
      out[i][j].z *= inverse;
      out[i][j].w *= inverse;
    }
  }
  const int64_t out_stride = s.heads * dim;
  Tile::StoreRows(out, out_stride, rows, dim,
                  static_cast<T*>(args.out) + row * out_stride + n * dim);
}

// Few queries (generation): block (i, n, b) is one query, whose keys its warps
// share. A lane has every 32nd element of q, k, v and out.
constexpr int kRowWarps = 16;
constexpr int kRowKeys = 4;  // in flight in a warp
constexpr int64_t kFewQueries = 16;
template <typename T, int kDim>
__global__ void __launch_bounds__(kRowWarps* kWarp)
    ForwardRowKernel(const __grid_constant__ AttentionForwardArgs args) {
  constexpr int kPer = kDim / kWarp;
  const AttentionShape& s = args.shape;
  const int dim = s.head_dim, i = blockIdx.x, n = blockIdx.y, b = blockIdx.z;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Sample sample = SampleOf(s, args.key_lengths, args.cu_seqlens, b);
  if (i >= sample.queries) return;
  const int64_t row = sample.first_query + i;
  const int64_t kv_at =
      KeyOffset(sample, b, args.kv_stride, args.kv_batch_stride) +
      n / (s.heads / s.kv_heads) * dim;
  // Element e of this lane; 0 behind the head.
  const auto load = [&](const void* from, int64_t at, int e) {
    const int d = lane + e * kWarp;
    return d < dim ? ToFloat(static_cast<const T*>(from)[at + d]) : 0.0f;
  };

  float q[kPer], out[kPer] = {}, max = -kInfinity, sum = 0;
#pragma unroll
  for (int e = 0; e < kPer; ++e)
    q[e] = s.scale * load(args.q, row * args.q_stride + n * dim, e);
  const int64_t keys = sample.VisibleKeys(i);
  for (int64_t j0 = warp * kRowKeys; j0 < keys; j0 += kRowWarps * kRowKeys) {
    float z[kRowKeys], v[kRowKeys][kPer];
#pragma unroll
    for (int j = 0; j < kRowKeys; ++j) {
      const int64_t at = kv_at + std::min(j0 + j, keys - 1) * args.kv_stride;
      z[j] = 0;
#pragma unroll
      for (int e = 0; e < kPer; ++e) {
        z[j] += q[e] * load(args.k, at, e);
        v[j][e] = load(args.v, at, e);
      }
    }
    float largest = max;
#pragma unroll
    for (int j = 0; j < kRowKeys; ++j) {
      z[j] = j0 + j < keys ? WarpSum(z[j]) : -kInfinity;
      largest = fmaxf(largest, z[j]);
    }
    const float shrink = ExpBelow(max, largest);
    max = largest;
    sum *= shrink;
#pragma unroll
    for (int e = 0; e < kPer; ++e) out[e] *= shrink;
#pragma unroll
    for (int j = 0; j < kRowKeys; ++j) {
      const float p = expf(z[j] - max);
      sum += p;
#pragma unroll
      for (int e = 0; e < kPer; ++e) out[e] += p * v[j][e];
    }
  }

  __shared__ float warp_max[kRowWarps], warp_sum[kRowWarps];
  __shared__ float warp_out[kRowWarps][kDim];
  if (lane == 0) warp_max[warp] = max, warp_sum[warp] = sum;
#pragma unroll
  for (int e = 0; e < kPer; ++e) warp_out[warp][lane + e * kWarp] = out[e];
  __syncthreads();
  for (int w = 0; w < kRowWarps; ++w) max = fmaxf(max, warp_max[w]);
  sum = 0;
  for (int w = 0; w < kRowWarps; ++w)
    sum += warp_sum[w] * ExpBelow(warp_max[w], max);
  const float inverse = sum == 0 ? 0 : 1 / sum;
  for (int d = threadIdx.x; d < dim; d += kRowWarps * kWarp) {
    float value = 0;
    for (int w = 0; w < kRowWarps; ++w)
      value += warp_out[w][d] * ExpBelow(warp_max[w], max);
    static_cast<T*>(args.out)[row * s.heads * dim + n * dim + d] =
        FromFloat<T>(value * inverse);
  }
  if (threadIdx.x == 0) {
    static_cast<float*>(args.lse)[(b * s.heads + n) * s.seq_q + i] =
        max + logf(sum);
  }
}

}  // namespace
}  // namespace simple

void AttentionForwardSimple(const AttentionForwardArgs& args, Stream stream) {
  const AttentionShape& s = args.shape;
  if (s.batch == 0 || s.seq_q == 0) return;
  simple::Dispatch(args.dtype, s.head_dim, [&]<typename T, int kDim>() {
    if (s.seq_q <= simple::kFewQueries) {
      return simple::Launch(simple::ForwardRowKernel<T, kDim>,
                            simple::Grid(s.seq_q, 1, s.heads, s.batch),
                            simple::kRowWarps * kWarp, 0, args, stream);
    }
    using Tile = simple::Tiles<kDim>;
    simple::Launch(simple::ForwardTileKernel<T, kDim>,
                   simple::Grid(s.seq_q, Tile::kTile, s.heads, s.batch),
                   simple::kThreads, 2 * Tile::kRowsFloats + Tile::kScoreFloats,
                   args, stream);
  });
}

}  // namespace mimo::kernels
