// The Hopper attention forward: bfloat16, head size 64 or 128.
//
// A block is one producer thread, which copies tiles of Q, K and V into shared
// memory by TMA, and consumer warpgroups of 64 queries each. For every tile of
// keys a consumer issues S = Q K^T of the next tile before O += P V of this one
// and does the softmax of S while the tensor cores run the latter; named
// barriers make the warpgroups take turns, so that one's products run under
// another's softmax. Blocks are persistent and take tiles of queries in an
// order that evens out the causal triangle.
// Source: Shah et al. 2024, arXiv:2407.08608, sections 3.1 and 3.2.
//
// Packed samples are read as if padded in front to whole tiles: rows before a
// sample's first belong to the sample before it (or are zero), and are masked,
// so nothing behind the last row of q, k and v is ever read.
//
// A lone token: a ViT's class token makes 577 of 24 x 24 + 1, that is whole
// tiles of queries and of keys and one more of each. The key's score is taken
// without the tensor cores, and is what the running softmax begins with. The
// query is left to the producer's three idle warps, which read the tiles of
// keys beside the consumers of the head's first queries.
//
// Length: producer and consumer are one protocol.
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/sm90.cuh"
#include "kernels/base/cuda.cuh"

namespace mimo::kernels {
namespace {

using namespace sm90;  // NOLINT: the instructions this file is written in

constexpr int kNoDiagonal = 1 << 28;
constexpr float kLog2E = 1.4426950408889634f;

template <int kD, int kWarpgroups, int kTileKeys, int kRing,
          bool kLoneToken = false>
struct Tiling {
  static constexpr int kDim = kD;
  static constexpr int kConsumers = kWarpgroups;
  static constexpr int kQueries = 64 * kWarpgroups;
  static constexpr int kKeys = kTileKeys;
  static constexpr int kStages = kRing;  // tiles of K, and of V, on their way
  static constexpr bool kLone = kLoneToken;
  static constexpr int kThreads = (kWarpgroups + 1) * kWarpgroup;
  // Of the 65536 / kThreads (to a multiple of 8) that a thread starts with, the
  // producer's warpgroup leaves the consumers these.
  static constexpr int kProducerRegisters = kLone              ? 80
                                            : kWarpgroups == 2 ? 24
                                                               : 32;
  static constexpr int kConsumerRegisters = kLone              ? 144
                                            : kWarpgroups == 2 ? 240
                                                               : 160;
};

// Warps that share out the keys of a tile for the lone query, a key a lane.
constexpr int kLoneWarps = 3;
template <int kDim>
struct LoneShare {
  float max, sum, out[kDim];
};

template <typename T>
struct Shared {
  __nv_bfloat16 q[2][T::kDim / 64][T::kQueries][64];
  __nv_bfloat16 k[T::kStages][T::kDim / 64][T::kKeys][64];
  __nv_bfloat16 v[T::kStages][T::kDim / 64][T::kKeys][64];
  uint64_t q_full[2], q_empty[2];
  uint64_t k_full[T::kStages], k_empty[T::kStages];
  uint64_t v_full[T::kStages], v_empty[T::kStages];
  LoneShare<T::kDim> lone[T::kLone ? kLoneWarps : 1];
};

struct Params {
  CUtensorMap q, k, v;  // {columns, rows, samples}
  __nv_bfloat16* out;
  float* lse;
  const int32_t* key_lengths;
  const int32_t* cu_seqlens;
  int seq_q, seq_k, heads, heads_per_group;
  int tiles_per_head;
  bool causal;
  float scale, scale_log2;
  // The lone token's rows of sample 0.
  const __nv_bfloat16 *lone_q, *lone_k, *lone_v;
  int64_t q_batch_stride, kv_batch_stride;
};

// One block's work: queries [row, row + kQueries) of one head of one sample.
// Rows and keys count from the sample's first one, or from the start of the
// padding in front of it. Query i sees the keys [key_begin, min(key_end, i +
// diagonal + 1)).
struct Tile {
  int sample, head;
  int row, row_begin, row_end;  // the rows that exist
  int key_begin, key_end, diagonal;
  int first_q, first_k;  // row 0 and key 0 in the tensor maps
  int map_sample;        // the tensor maps' last coordinate
  int key_tiles;
  int64_t out_row;  // row 0 in out
};

template <typename T>
__device__ Tile MakeTile(const Params& p, int index) {
  Tile t;
  t.row = (p.tiles_per_head - 1 - index % p.tiles_per_head) * T::kQueries;
  const int head = index / p.tiles_per_head;
  t.head = head % p.heads;
  t.sample = head / p.heads;
  t.row_begin = t.key_begin = t.first_q = t.first_k = 0;
  t.row_end = p.seq_q;
  t.key_end = p.seq_k;
  t.map_sample = t.sample;
  t.out_row = int64_t{t.sample} * p.seq_q;
  t.diagonal = p.causal ? p.seq_k - p.seq_q : kNoDiagonal;
  if (p.cu_seqlens != nullptr) {
    const int begin = p.cu_seqlens[t.sample];
    const int length = p.cu_seqlens[t.sample + 1] - begin;
    t.row_begin = (T::kQueries - length % T::kQueries) % T::kQueries;
    t.key_begin = (T::kKeys - length % T::kKeys) % T::kKeys;
    t.row_end = t.row_begin + length;
    t.key_end = length;
    t.map_sample = 0;
    t.first_q = begin - t.row_begin;
    t.first_k = begin - t.key_begin;
    t.out_row = t.first_q;
    if (p.causal) t.diagonal = t.key_begin - t.row_begin;
  }
  if constexpr (T::kLone) --t.row_end, --t.key_end;
  if (p.key_lengths != nullptr)
    t.key_end = min(t.key_end, p.key_lengths[t.sample]);
  t.key_end += t.key_begin;
  const int visible = min(t.key_end, t.row + T::kQueries + t.diagonal);
  t.key_tiles =
      visible <= t.key_begin ? 0 : (visible + T::kKeys - 1) / T::kKeys;
  return t;
}

// The tile that this block takes in its n-th turn. Every other round goes
// through the blocks backwards: who had a long tile gets a short one.
__device__ int TileIndex(int turn) {
  const int blocks = gridDim.x;
  const int block = blockIdx.x;
  return turn * blocks + (turn % 2 == 0 ? block : blocks - 1 - block);
}

// A position in a ring of tiles: which slot, and the parity of its barriers.
template <int kStages>
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void Next() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

template <typename T>
__device__ void Produce(const Params& p, Shared<T>& shared, int tiles) {
  RingPosition<2> q;
  RingPosition<T::kStages> k, v;
  const auto load = [&](auto& to, const CUtensorMap& map, uint64_t* full,
                        uint64_t* empty, uint32_t parity, int column, int row,
                        int sample) {
    BarrierWait(empty, parity ^ 1);
    BarrierExpect(full, sizeof(to));
#pragma unroll
    for (int half = 0; half < T::kDim / 64; ++half)
      TmaLoad(to[half], &map, full, column + 64 * half, row, sample);
  };
  for (int turn = 0, index; (index = TileIndex(turn)) < tiles; ++turn) {
    const Tile t = MakeTile<T>(p, index);
    if (t.row >= t.row_end || t.key_tiles == 0) continue;
    const int kv_column = t.head / p.heads_per_group * T::kDim;
    const auto load_k = [&](int n) {
      load(shared.k[k.slot], p.k, &shared.k_full[k.slot],
           &shared.k_empty[k.slot], k.parity, kv_column,
           t.first_k + n * T::kKeys, t.map_sample);
      k.Next();
    };
    load(shared.q[q.slot], p.q, &shared.q_full[q.slot], &shared.q_empty[q.slot],
         q.parity, t.head * T::kDim, t.first_q + t.row, t.map_sample);
    q.Next();
    load_k(t.key_tiles - 1);
    for (int n = t.key_tiles - 1; n >= 0; --n) {
      if (n > 0) load_k(n - 1);
      load(shared.v[v.slot], p.v, &shared.v_full[v.slot],
           &shared.v_empty[v.slot], v.parity, kv_column,
           t.first_k + n * T::kKeys, t.map_sample);
      v.Next();
    }
  }
}

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The running softmax of a thread's two rows; `sum` is over the thread's own
// columns until the end.
struct Softmax {
  float max[2], sum[2];
};

// s to exp2(scale_log2 (s - max)), updating max and sum; rescale gets what the
// sums so far were multiplied with. The maximum stays behind by up to a factor
// of 2^8, which float32 sums do not feel: rescaling is rare.
template <bool kFirst, int kCount>
__device__ void Exponentiate(float (&s)[kCount], float scale_log2,
                             Softmax& softmax, float (&rescale)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float max = fmaxf(s[2 * r], s[2 * r + 1]);
#pragma unroll
    for (int i = 4; i < kCount; i += 4)
      max = fmaxf(max, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
    max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, 1));
    max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, 2));
    if constexpr (kFirst) {
      softmax.max[r] = max;
      rescale[r] = 1;
    } else {
      const float behind = (max - softmax.max[r]) * scale_log2;
      rescale[r] = 1;
      if (behind > 8) {
        rescale[r] = Exp2(-behind);
        softmax.max[r] = max;
      }
    }
    const float shift =
        softmax.max[r] == -INFINITY ? 0 : softmax.max[r] * scale_log2;
    float sum[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = s[i + 2 * r + c];
        x = Exp2(fmaf(x, scale_log2, -shift));
        sum[c] += x;
      }
    }
    const float before = kFirst ? 0 : softmax.sum[r] * rescale[r];
    softmax.sum[r] = before + (sum[0] + sum[1]);
  }
}

// A thread's two rows of Q, q[0] and q[8], have seen the lone key alone: its
// score and a sum of 1 (counted by one thread of a row's four), v as outputs.
template <typename T>
__device__ void LoneKey(const __nv_bfloat16 (*q)[64], const __nv_bfloat16* k,
                        const __nv_bfloat16* v, int quad_lane, Softmax& softmax,
                        float (&o)[T::kDim / 2]) {
  static_assert(T::kDim == 64);
  const int swizzle = threadIdx.x % kWarp / 4;  // q's row, modulo 8
  float dot[2] = {0, 0};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int chunk = 2 * quad_lane + half;
    float key[8], query[8];
    Load(k + 8 * chunk, key);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Load(&q[8 * r][8 * (chunk ^ swizzle)], query);
#pragma unroll
      for (int i = 0; i < 8; ++i) dot[r] = fmaf(query[i], key[i], dot[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    dot[r] += __shfl_xor_sync(0xffffffff, dot[r], 1);
    dot[r] += __shfl_xor_sync(0xffffffff, dot[r], 2);
    softmax.max[r] = dot[r];
    softmax.sum[r] = quad_lane == 0 ? 1 : 0;
  }
#pragma unroll
  for (int i = 0; i < T::kDim / 2; ++i)
    o[i] = ToFloat(v[i / 4 * 8 + 2 * quad_lane + i % 2]);
}

// The lone query of every head of which this block has the first queries.
template <typename T>
__device__ void LoneQueries(const Params& p, Shared<T>& shared, int tiles) {
  static_assert(T::kDim == 64 && T::kKeys == kLoneWarps * kWarp);
  constexpr int kBarrier = 15;
  const int warp = threadIdx.x / kWarp - 1, lane = threadIdx.x % kWarp;
  const auto release = [&](uint64_t* empty) {
    __syncwarp();
    if (lane == 0) BarrierArrive(empty);
  };
  // A lane's two columns of a row.
  const auto pair = [&](const __nv_bfloat16* row) {
    return __bfloat1622float2(
        reinterpret_cast<const __nv_bfloat162*>(row)[lane]);
  };
  RingPosition<T::kStages> k, v;
  for (int turn = 0, index; (index = TileIndex(turn)) < tiles; ++turn) {
    const Tile t = MakeTile<T>(p, index);
    const bool mine = t.row == 0;
    const int64_t group =
        t.sample * p.kv_batch_stride + t.head / p.heads_per_group * T::kDim;
    const __nv_bfloat16* query =
        p.lone_q + t.sample * p.q_batch_stride + t.head * T::kDim;
    float max = -INFINITY, sum = 0;  // sum: over the lane's own keys
    float2 out = {0, 0};
    if (mine && warp == 0) {
      const float2 x = pair(query), y = pair(p.lone_k + group);
      max = WarpSum(fmaf(x.x, y.x, x.y * y.y));
      sum = lane == 0 ? 1 : 0;
      out = pair(p.lone_v + group);
    }
    for (int n = t.key_tiles - 1; n >= 0; --n) {
      BarrierWait(&shared.k_full[k.slot], k.parity);
      float s = 0;
      if (mine) {
        const __nv_bfloat16* key = shared.k[k.slot][0][warp * kWarp + lane];
#pragma unroll
        for (int c = 0; c < T::kDim / 8; ++c) {
          float x[8], y[8];
          Load(query + 8 * c, x);
          Load(key + 8 * (c ^ lane % 8), y);
#pragma unroll
          for (int d = 0; d < 8; ++d) s = fmaf(x[d], y[d], s);
        }
      }
      release(&shared.k_empty[k.slot]);
      k.Next();
      BarrierWait(&shared.v_full[v.slot], v.parity);
      if (mine) {
        const float before = max;
        max = fmaxf(max, WarpMax(s));
        const float rescale = Exp2((before - max) * p.scale_log2);
        s = Exp2((s - max) * p.scale_log2);
        sum = sum * rescale + s;
        out = {out.x * rescale, out.y * rescale};
        const auto* values = shared.v[v.slot][0] + warp * kWarp;
#pragma unroll
        for (int i = 0; i < kWarp; ++i) {
          const float x = __shfl_sync(0xffffffff, s, i);
          // Chunk lane / 4 of row i lies elsewhere.
          const float2 y =
              pair(values[i] + ((lane / 4 ^ i % 8) - lane / 4) * 8);
          out = {fmaf(x, y.x, out.x), fmaf(x, y.y, out.y)};
        }
      }
      release(&shared.v_empty[v.slot]);
      v.Next();
    }
    if (!mine) continue;

    sum = WarpSum(sum);
    LoneShare<T::kDim>& own = shared.lone[warp];
    if (lane == 0) own.max = max, own.sum = sum;
    own.out[2 * lane] = out.x;
    own.out[2 * lane + 1] = out.y;
    NamedBarrierSync(kBarrier, kLoneWarps * kWarp);
    if (warp == 0) {
      max = fmaxf(max, fmaxf(shared.lone[1].max, shared.lone[2].max));
      sum = 0;
      out = {0, 0};
#pragma unroll
      for (const LoneShare<T::kDim>& share : shared.lone) {
        const float factor = Exp2((share.max - max) * p.scale_log2);
        sum = fmaf(factor, share.sum, sum);
        out = {fmaf(factor, share.out[2 * lane], out.x),
               fmaf(factor, share.out[2 * lane + 1], out.y)};
      }
      if (lane == 0) {
        p.lse[(int64_t{t.sample} * p.heads + t.head) * p.seq_q + t.row_end] =
            max * p.scale + logf(sum);
      }
      __nv_bfloat16* to = p.out + ((t.out_row + t.row_end) * p.heads + t.head) *
                                      int64_t{T::kDim};
      reinterpret_cast<uint32_t*>(to)[lane] =
          PackBfloat16(out.x / sum, out.y / sum);
    }
    NamedBarrierSync(kBarrier, kLoneWarps * kWarp);  // shares are read
  }
}

template <typename T>
__device__ void Consume(const Params& p, Shared<T>& shared, int tiles) {
  constexpr int kScores = T::kKeys / 2;
  constexpr int kOutputs = T::kDim / 2;
  // Shuffled, so that the compiler knows it to be one value a warp.
  const int warpgroup =
      __shfl_sync(0xffffffff, threadIdx.x / kWarpgroup - 1, 0);
  const int lane = threadIdx.x % kWarp;
  const int warpgroup_row = warpgroup * 64;
  const int thread_row =
      warpgroup_row + threadIdx.x % kWarpgroup / kWarp * 16 + lane / 4;
  const int quad_lane = lane % 4;
  constexpr int kTurn = 1;  // the first of the named barriers
  const auto my_turn = [&] {
    NamedBarrierSync(kTurn + warpgroup, 2 * kWarpgroup);
  };
  const auto next_turn = [&] {
    NamedBarrierArrive(kTurn + (warpgroup + 1) % T::kConsumers, 2 * kWarpgroup);
  };
  const auto release = [&](uint64_t* empty) {
    if (lane == 0) BarrierArrive(empty);
  };
  if (warpgroup == T::kConsumers - 1) next_turn();

  RingPosition<2> q;
  RingPosition<T::kStages> k, v;
  float s[kScores];
  float o[kOutputs];
  uint32_t probabilities[kScores / 2];

  const auto start_scores = [&] {
    const uint64_t a = RowsDescriptor(&shared.q[q.slot][0][warpgroup_row]);
    const uint64_t b = RowsDescriptor(&shared.k[k.slot]);
#pragma unroll
    for (int i = 0; i < T::kDim / 16; ++i)
      Wgmma<0, 0>(s, a + i / 4 * (T::kQueries * 8) + i % 4 * 2,
                  b + i / 4 * (T::kKeys * 8) + i % 4 * 2, i > 0);
    WgmmaCommit();
  };
  const auto start_outputs = [&](bool accumulate) {
    const uint64_t b = ColumnsDescriptor(&shared.v[v.slot], T::kKeys);
#pragma unroll
    for (int i = 0; i < T::kKeys / 16; ++i)
      Wgmma<1>(o, &probabilities[4 * i], b + 128 * i, accumulate || i > 0);
    WgmmaCommit();
  };
  const auto pack = [&] {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i)
      probabilities[i] = PackBfloat16(s[2 * i], s[2 * i + 1]);
  };
  const auto rescale_outputs = [&](const float(&rescale)[2]) {
    if (__any_sync(0xffffffff, rescale[0] != 1 || rescale[1] != 1)) {
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) o[i] *= rescale[i / 2 % 2];
    }
  };

  for (int turn = 0, index; (index = TileIndex(turn)) < tiles; ++turn) {
    const Tile t = MakeTile<T>(p, index);
    if (t.row >= t.row_end) continue;
    if (T::kDim == 64 && t.row + warpgroup_row >= t.row_end) {
      // Has no rows: only hands on what the others wait for. Head size 128
      // gained nothing by it.
      for (int n = t.key_tiles - 1; n >= 0; --n) {
        BarrierWait(&shared.k_full[k.slot], k.parity);
        release(&shared.k_empty[k.slot]);
        k.Next();
        if (n < t.key_tiles - 1) {
          my_turn();
          next_turn();
        }
        BarrierWait(&shared.v_full[v.slot], v.parity);
        release(&shared.v_empty[v.slot]);
        v.Next();
      }
      if (t.key_tiles > 0) {
        BarrierWait(&shared.q_full[q.slot], q.parity);
        release(&shared.q_empty[q.slot]);
        q.Next();
      }
      continue;
    }
    const int row = t.row + thread_row;
    Softmax softmax = {{-INFINITY, -INFINITY}, {0, 0}};

    const auto mask = [&](int n) {
      const int first = n * T::kKeys;
      const int end = min(t.key_end, t.row + warpgroup_row + t.diagonal + 1);
      if (first >= t.key_begin && first + T::kKeys <= end) return;
      const int begin = t.key_begin - first - 2 * quad_lane;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int end = min(t.key_end, row + 8 * r + t.diagonal + 1) - first -
                        2 * quad_lane;
#pragma unroll
        for (int i = 0; i < kScores; i += 4) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int key = 2 * i + c;
            if (key < begin || key >= end) s[i + 2 * r + c] = -INFINITY;
          }
        }
      }
    };

    if (t.key_tiles > 0) {
      float rescale[2];
      BarrierWait(&shared.q_full[q.slot], q.parity);
      BarrierWait(&shared.k_full[k.slot], k.parity);
      Pin(s);
      WgmmaFence();
      start_scores();
      WgmmaWait<0>();
      Pin(s);
      release(&shared.k_empty[k.slot]);
      k.Next();
      mask(t.key_tiles - 1);
      bool accumulate = false;
      if constexpr (T::kLone) {
        const int64_t group =
            t.sample * p.kv_batch_stride + t.head / p.heads_per_group * T::kDim;
        LoneKey<T>(shared.q[q.slot][0] + thread_row, p.lone_k + group,
                   p.lone_v + group, quad_lane, softmax, o);
        Exponentiate<false>(s, p.scale_log2, softmax, rescale);
        rescale_outputs(rescale);
        accumulate = true;
      } else {
        Exponentiate<true>(s, p.scale_log2, softmax, rescale);
      }
      pack();
      if (t.key_tiles > 1) BarrierWait(&shared.k_full[k.slot], k.parity);
      for (int n = t.key_tiles - 2; n >= 0; --n) {
        my_turn();
        Pin(s);
        Pin(o);
        Pin(probabilities);
        WgmmaFence();
        start_scores();
        BarrierWait(&shared.v_full[v.slot], v.parity);
        WgmmaFence();
        start_outputs(accumulate);
        accumulate = true;
        next_turn();
        WgmmaWait<1>();
        Pin(s);
        release(&shared.k_empty[k.slot]);
        k.Next();
        mask(n);
        Exponentiate<false>(s, p.scale_log2, softmax, rescale);
        Pin(s);
        // The compiler moves the wait for the outputs up to the last branch, so
        // the branches of this wait keep it behind the exponentials.
        if (n > 0) BarrierWait(&shared.k_full[k.slot], k.parity);
        WgmmaWait<0>();
        Pin(o);
        Pin(probabilities);
        release(&shared.v_empty[v.slot]);
        v.Next();
        pack();
        rescale_outputs(rescale);
      }
      release(&shared.q_empty[q.slot]);
      q.Next();
      BarrierWait(&shared.v_full[v.slot], v.parity);
      Pin(o);
      Pin(probabilities);
      WgmmaFence();
      start_outputs(accumulate);
      WgmmaWait<0>();
      Pin(o);
      release(&shared.v_empty[v.slot]);
      v.Next();
    }

    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = softmax.sum[r];
      sum += __shfl_xor_sync(0xffffffff, sum, 1);
      sum += __shfl_xor_sync(0xffffffff, sum, 2);
      inverse[r] = sum > 0 ? 1 / sum : 0;
      const int i = row + 8 * r;
      if (quad_lane == 0 && i >= t.row_begin && i < t.row_end)
        p.lse[(int64_t{t.sample} * p.heads + t.head) * p.seq_q + i -
              t.row_begin] =
            sum > 0 ? softmax.max[r] * p.scale + logf(sum) : -INFINITY;
    }
    // A thread's 2 columns of each of 4 chunks of 8 become the 8 of one chunk.
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = row + 8 * r;
      const bool real = i >= t.row_begin && i < t.row_end;
      __nv_bfloat16* out = p.out +
                           (t.out_row + i) * (int64_t{p.heads} * T::kDim) +
                           t.head * T::kDim + 8 * quad_lane;
#pragma unroll
      for (int group = 0; group < T::kDim / 32; ++group) {
        uint32_t x[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int first = 16 * group + 4 * c + 2 * r;
          // Without a key nothing was ever added to o.
          x[c] = inverse[r] == 0 ? 0
                                 : PackBfloat16(o[first] * inverse[r],
                                                o[first + 1] * inverse[r]);
        }
#pragma unroll
        for (int bit = 1; bit < 4; bit *= 2) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (c & bit) continue;
            const bool high = quad_lane & bit;
            const uint32_t got =
                __shfl_xor_sync(0xffffffff, high ? x[c] : x[c + bit], bit);
            (high ? x[c] : x[c + bit]) = got;
          }
        }
        if (real)
          *reinterpret_cast<uint4*>(out + 32 * group) =
              make_uint4(x[0], x[1], x[2], x[3]);
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads, 1)
    ForwardKernel(const __grid_constant__ Params p, int tiles) {
  extern __shared__ __align__(1024) uint8_t bytes[];
  Shared<T>& shared = *reinterpret_cast<Shared<T>*>(bytes);
  if (threadIdx.x == 0) {
    constexpr int kWarps = T::kConsumers * 4;
    constexpr int kKeyWarps = kWarps + (T::kLone ? kLoneWarps : 0);
    for (int i = 0; i < 2; ++i) {
      BarrierInit(&shared.q_full[i], 1);
      BarrierInit(&shared.q_empty[i], kWarps);
    }
    for (int i = 0; i < T::kStages; ++i) {
      BarrierInit(&shared.k_full[i], 1);
      BarrierInit(&shared.k_empty[i], kKeyWarps);
      BarrierInit(&shared.v_full[i], 1);
      BarrierInit(&shared.v_empty[i], kKeyWarps);
    }
    FenceBarrierInit();
    PrefetchTensorMap(&p.q);
    PrefetchTensorMap(&p.k);
    PrefetchTensorMap(&p.v);
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    ShrinkRegisters<T::kProducerRegisters>();
    if (threadIdx.x == 0) Produce<T>(p, shared, tiles);
    if constexpr (T::kLone)
      if (threadIdx.x >= kWarp) LoneQueries<T>(p, shared, tiles);
  } else {
    GrowRegisters<T::kConsumerRegisters>();
    Consume<T>(p, shared, tiles);
  }
}

template <typename T>
void Launch(const AttentionForwardArgs& args, Stream stream) {
  const AttentionShape& s = args.shape;
  const bool packed = args.cu_seqlens != nullptr;
  Params p;
  p.tiles_per_head = CeilDiv(s.seq_q - (T::kLone ? 1 : 0), T::kQueries);
  const int64_t tiles = s.batch * s.heads * p.tiles_per_head;
  if (tiles == 0) return;
  const auto map = [&](const void* rows, int64_t heads, int64_t seq,
                       int64_t stride, int64_t batch_stride, int box_rows) {
    return MakeTensorMap<3>(
        rows,
        {static_cast<uint64_t>(heads * s.head_dim),
         static_cast<uint64_t>(packed ? s.batch * seq : seq),
         static_cast<uint64_t>(packed ? 1 : s.batch)},
        {static_cast<uint64_t>(stride * 2),
         static_cast<uint64_t>(batch_stride * 2)},
        {64, static_cast<uint32_t>(box_rows), 1});
  };
  const int64_t kv_batch_stride = args.kv_batch_stride != 0
                                      ? args.kv_batch_stride
                                      : s.seq_k * args.kv_stride;
  p.q = map(args.q, s.heads, s.seq_q, args.q_stride, s.seq_q * args.q_stride,
            T::kQueries);
  p.k = map(args.k, s.kv_heads, s.seq_k, args.kv_stride, kv_batch_stride,
            T::kKeys);
  p.v = map(args.v, s.kv_heads, s.seq_k, args.kv_stride, kv_batch_stride,
            T::kKeys);
  p.out = static_cast<__nv_bfloat16*>(args.out);
  p.lse = static_cast<float*>(args.lse);
  p.key_lengths = args.key_lengths;
  p.cu_seqlens = args.cu_seqlens;
  p.seq_q = s.seq_q;
  p.seq_k = s.seq_k;
  p.heads = s.heads;
  p.heads_per_group = s.heads / s.kv_heads;
  p.causal = s.causal;
  p.scale = s.scale;
  p.scale_log2 = p.scale * kLog2E;
  p.q_batch_stride = s.seq_q * args.q_stride;
  p.kv_batch_stride = kv_batch_stride;
  const auto last = [](const void* rows, int64_t seq, int64_t stride) {
    return static_cast<const __nv_bfloat16*>(rows) + (seq - 1) * stride;
  };
  p.lone_q = last(args.q, s.seq_q, args.q_stride);
  p.lone_k = last(args.k, s.seq_k, args.kv_stride);
  p.lone_v = last(args.v, s.seq_k, args.kv_stride);
  constexpr int kBytes = sizeof(Shared<T>);
  static const bool once [[maybe_unused]] = [] {
    MIMO_CUDA_CHECK(cudaFuncSetAttribute(
        ForwardKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  const int blocks = std::min<int64_t>(tiles, NumSms());
  ForwardKernel<T>
      <<<blocks, T::kThreads, kBytes, RawStream(stream)>>>(p, tiles);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

bool AttentionForwardSm90Takes(const AttentionForwardArgs& args) {
  const AttentionShape& s = args.shape;
  return args.dtype == DType::kBFloat16 &&
         (s.head_dim == 64 || s.head_dim == 128) && s.scale > 0 &&
         s.seq_k > 0 && args.q_stride % 8 == 0 && args.kv_stride % 8 == 0 &&
         args.kv_batch_stride % 8 == 0;
}

void AttentionForwardSm90(const AttentionForwardArgs& args, Stream stream) {
  CHECK(AttentionForwardSm90Takes(args));
  using Lone = Tiling<64, 3, 96, 4, /*kLoneToken=*/true>;
  const int64_t seq = args.shape.seq_q, keys = args.shape.seq_k;
  if (args.shape.head_dim == 128) {
    Launch<Tiling<128, 2, 128, 2>>(args, stream);
  } else if (seq > 1 && seq % Lone::kQueries == 1 && keys > 1 &&
             keys % Lone::kKeys == 1 && !args.shape.causal &&
             args.key_lengths == nullptr && args.cu_seqlens == nullptr) {
    Launch<Lone>(args, stream);
  } else if (CeilDiv(seq, 128) * 128 * 1.1 < CeilDiv(seq, 192) * 192) {
    // Tiles of 192 queries are faster on long sequences, but leave more rows
    // empty.
    Launch<Tiling<64, 2, 192, 2>>(args, stream);
  } else {
    Launch<Tiling<64, 3, 128, 3>>(args, stream);
  }
}

}  // namespace mimo::kernels
