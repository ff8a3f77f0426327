// The backward for every shape: a kernel for dk and dv, where a block owns a
// tile of keys and goes over the queries, and one for dq, the reverse. Scores
// are computed in both, so that every sum has one owner and one order.
#include "kernels/attention/attention_simple.cuh"

namespace mimo::kernels {
namespace simple {
namespace {

// delta[b, n, i] = dout . out; a warp for each, rows of out are (b, i, n).
template <typename T>
__global__ void DeltaKernel(
    const __grid_constant__ AttentionBackwardArgs args) {
  const AttentionShape& s = args.shape;
  const int64_t i =
      int64_t{blockIdx.x} * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  const int dim = s.head_dim, n = blockIdx.y, b = blockIdx.z;
  const Sample sample = SampleOf(s, args.key_lengths, args.cu_seqlens, b);
  if (i >= sample.queries) return;
  const int64_t at = ((sample.first_query + i) * s.heads + n) * dim;
  float sum = 0;
  for (int d = threadIdx.x % kWarp; d < dim; d += kWarp) {
    sum += ToFloat(static_cast<const T*>(args.out)[at + d]) *
           ToFloat(static_cast<const T*>(args.dout)[at + d]);
  }
  sum = WarpSum(sum);
  if (threadIdx.x % kWarp == 0) {
    static_cast<float*>(args.workspace)[(b * s.heads + n) * s.seq_q + i] = sum;
  }
}

// What both backward kernels share: tiles of q, dout (at query i0) and k, v (at
// key j0) in shared memory, and p and dz of this pair of tiles.
template <typename T, int kDim>
struct BackwardPair {
  using Tile = Tiles<kDim>;
  static constexpr int kFloats = 4 * Tile::kRowsFloats + 2 * Tile::kScoreFloats;

  __device__ BackwardPair(const AttentionBackwardArgs& args, float* shared)
      : args(args),
        q(shared),
        dout(q + Tile::kRowsFloats),
        k(dout + Tile::kRowsFloats),
        v(k + Tile::kRowsFloats),
        p(v + Tile::kRowsFloats),
        dz(p + Tile::kScoreFloats) {}

  __device__ void LoadQueries(const Sample& sample, int n, int64_t i0) {
    const AttentionShape& s = args.shape;
    const int64_t row = sample.first_query + i0;
    const int64_t out_stride = s.heads * s.head_dim, column = n * s.head_dim;
    Tile::LoadRows(static_cast<const T*>(args.q) + row * args.q_stride + column,
                   args.q_stride, sample.queries - i0, s.head_dim, q);
    Tile::LoadRows(static_cast<const T*>(args.dout) + row * out_stride + column,
                   out_stride, sample.queries - i0, s.head_dim, dout);
  }
  __device__ void LoadKeys(const Sample& sample, int g, int64_t j0) {
    const int dim = args.shape.head_dim;
    const int64_t at = (sample.first_key + j0) * args.kv_stride + g * dim;
    Tile::LoadRows(static_cast<const T*>(args.k) + at, args.kv_stride,
                   sample.keys - j0, dim, k);
    Tile::LoadRows(static_cast<const T*>(args.v) + at, args.kv_stride,
                   sample.keys - j0, dim, v);
  }

  // head: b * N + n
  __device__ void Scores(const Sample& sample, int64_t head, int64_t i0,
                         int64_t j0) {
    typename Tile::Scores z, dp;
    Tile::Dots(q, k, z);
    Tile::Dots(dout, v, dp);
    const float scale = args.shape.scale;
#pragma unroll
    for (int i = 0; i < Tile::kPer; ++i) {
      const int64_t row = i0 + threadIdx.x / kSide + i * kSide;
      int64_t visible = 0;
      float lse = 0, delta = 0;
      if (row < sample.queries) {
        visible = sample.VisibleKeys(row) - j0;
        const int64_t at = head * args.shape.seq_q + row;
        lse = static_cast<const float*>(args.lse)[at];
        delta = static_cast<const float*>(args.workspace)[at];
      }
#pragma unroll
      for (int j = 0; j < Tile::kPer; ++j) {
        const int c = threadIdx.x % kSide + j * kSide;
        z[i][j] = c < visible ? expf(scale * z[i][j] - lse) : 0;
        dp[i][j] = scale * z[i][j] * (dp[i][j] - delta);
      }
    }
    Tile::StoreScores(z, p);
    Tile::StoreScores(dp, dz);
  }

  const AttentionBackwardArgs& args;
  float *q, *dout, *k, *v, *p, *dz;
};

// Block (x, g, b): tile x of the keys of group g of sample b.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    BackwardKeysKernel(const __grid_constant__ AttentionBackwardArgs args) {
  using Tile = Tiles<kDim>;
  extern __shared__ float4 shared[];
  BackwardPair<T, kDim> pair(args, reinterpret_cast<float*>(shared));
  const AttentionShape& s = args.shape;
  const int dim = s.head_dim, g = blockIdx.y, b = blockIdx.z;
  const int ratio = s.heads / s.kv_heads;
  const Sample sample = SampleOf(s, args.key_lengths, args.cu_seqlens, b);
  const int64_t j0 = int64_t{blockIdx.x} * Tile::kTile;
  if (j0 >= sample.rows_k) return;

  typename Tile::Vectors dk = {}, dv = {};
  pair.LoadKeys(sample, g, j0);
  for (int n = g * ratio; n < (g + 1) * ratio; ++n) {
    for (int64_t i0 = 0; i0 < sample.queries; i0 += Tile::kTile) {
      const int64_t last = std::min(i0 + Tile::kTile, sample.queries) - 1;
      if (sample.VisibleKeys(last) <= j0) continue;
      __syncthreads();
      pair.LoadQueries(sample, n, i0);
      __syncthreads();
      pair.Scores(sample, b * s.heads + n, i0, j0);
      __syncthreads();
      Tile::template AddProduct<true>(pair.p, pair.dout, dv);
      Tile::template AddProduct<true>(pair.dz, pair.q, dk);
    }
  }
  const int64_t at = (sample.first_key + j0) * args.dkv_stride + g * dim;
  Tile::StoreRows(dk, args.dkv_stride, sample.rows_k - j0, dim,
                  static_cast<T*>(args.dk) + at);
  Tile::StoreRows(dv, args.dkv_stride, sample.rows_k - j0, dim,
                  static_cast<T*>(args.dv) + at);
}

// Block (x, n, b): tile x of the queries of head n of sample b.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    BackwardQueriesKernel(const __grid_constant__ AttentionBackwardArgs args) {
  using Tile = Tiles<kDim>;
  extern __shared__ float4 shared[];
  BackwardPair<T, kDim> pair(args, reinterpret_cast<float*>(shared));
  const AttentionShape& s = args.shape;
  const int dim = s.head_dim, n = blockIdx.y, b = blockIdx.z;
  const Sample sample = SampleOf(s, args.key_lengths, args.cu_seqlens, b);
  const int64_t i0 = int64_t{gridDim.x - 1 - blockIdx.x} * Tile::kTile;
  if (i0 >= sample.queries) return;

  typename Tile::Vectors dq = {};
  pair.LoadQueries(sample, n, i0);
  const int64_t keys =
      sample.VisibleKeys(std::min(i0 + Tile::kTile, sample.queries) - 1);
  for (int64_t j0 = 0; j0 < keys; j0 += Tile::kTile) {
    __syncthreads();
    pair.LoadKeys(sample, n / (s.heads / s.kv_heads), j0);
    __syncthreads();
    pair.Scores(sample, b * s.heads + n, i0, j0);
    __syncthreads();
    Tile::template AddProduct<false>(pair.dz, pair.k, dq);
  }
  Tile::StoreRows(dq, args.dq_stride, sample.queries - i0, dim,
                  static_cast<T*>(args.dq) +
                      (sample.first_query + i0) * args.dq_stride + n * dim);
}

}  // namespace
}  // namespace simple

void AttentionBackwardSimple(const AttentionBackwardArgs& args, Stream stream) {
  const AttentionShape& s = args.shape;
  if (s.batch == 0) return;
  simple::Dispatch(args.dtype, s.head_dim, [&]<typename T, int kDim>() {
    constexpr int kTile = simple::Tiles<kDim>::kTile;
    constexpr int kFloats = simple::BackwardPair<T, kDim>::kFloats;
    if (s.seq_q > 0) {
      simple::Launch(
          simple::DeltaKernel<T>,
          simple::Grid(s.seq_q, simple::kThreads / kWarp, s.heads, s.batch),
          simple::kThreads, 0, args, stream);
      simple::Launch(simple::BackwardQueriesKernel<T, kDim>,
                     simple::Grid(s.seq_q, kTile, s.heads, s.batch),
                     simple::kThreads, kFloats, args, stream);
    }
    if (s.seq_k > 0) {
      simple::Launch(simple::BackwardKeysKernel<T, kDim>,
                     simple::Grid(s.seq_k, kTile, s.kv_heads, s.batch),
                     simple::kThreads, kFloats, args, stream);
    }
  });
}

int64_t AttentionBackwardSimpleWorkspaceBytes(const AttentionShape& s) {
  return s.batch * s.heads * s.seq_q * sizeof(float);
}

}  // namespace mimo::kernels
