// What the Hopper attention backward is made of: its tiles, its blocks' work
// and shared memory, and the instructions that it alone needs.
#ifndef MIMO_KERNELS_ATTENTION_ATTENTION_SM90_BACKWARD_CUH_
#define MIMO_KERNELS_ATTENTION_ATTENTION_SM90_BACKWARD_CUH_

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/attention/sm90.cuh"
#include "kernels/attention/visible_keys.h"
#include "kernels/base/cuda.cuh"

namespace mimo::kernels::sm90_backward {

using sm90::SharedAddress;

inline constexpr int kKeys = 128;  // of a tile
template <int kDim>
inline constexpr int kQueries = 8192 / kDim;
// A tile of queries is worked on in parts of 64.
template <int kDim>
inline constexpr int kParts = kQueries<kDim> / 64;
inline constexpr int kHalf = 64 * 64;  // of a tile's dQ
inline constexpr int kQStages = 3, kDoutStages = 2;
inline constexpr int kThreads = 3 * sm90::kWarpgroup;
inline constexpr int kComputeWarps = 8;
inline constexpr float kLog2E = 1.4426950408889634f;

struct Params {
  CUtensorMap q, k, v, dout;  // [batch][row][column], 64 columns a box
  AttentionBackwardArgs args;
  float* dq_sums;  // [B, N, M, 2, 64 * 64]: halves (see Compute), thread order
  float* nlse;     // [B, N, M, kQueries], M = tiles of queries
  float* delta;    // [B, N, M, kQueries]
  int* turns;      // [B, N, M, 2]: tiles of keys added so far
  int* ticket;     // tiles of keys handed out
  int q_tiles, k_tiles, ratio, heads_at_once;  // ratio: heads of a group
  float scale;
};

// A sample's rows in tiles: row r of its tiles of queries is row first_query +
// r of q, real from q_begin to q_end; so the keys. Packed samples are padded in
// front to whole tiles, with rows of the sample before: nothing behind the last
// row of q, k and v is read. Key j is hidden from query i if j < k_begin, j >=
// keys or j > i + offset.
template <int kDim>
struct Extent {
  static constexpr int kRows = kQueries<kDim>;

  int first_query, first_key;
  int q_begin, q_end, k_begin, k_end, keys, offset;
  int map_q, map_k, map_batch;  // where the rows start in the tensor maps

  __device__ Extent(const AttentionBackwardArgs& args, int b) {
    const Sample s = SampleOf(args.shape, args.key_lengths, args.cu_seqlens, b);
    const bool packed = args.cu_seqlens != nullptr;
    q_begin = packed ? (kRows - s.queries % kRows) % kRows : 0;
    k_begin = packed ? (kKeys - s.rows_k % kKeys) % kKeys : 0;
    first_query = s.first_query - q_begin;
    first_key = s.first_key - k_begin;
    q_end = q_begin + s.queries;
    k_end = k_begin + s.rows_k;
    keys = k_begin + s.keys;
    offset = s.causal_shift + k_begin - q_begin;
    map_q = packed ? first_query : 0;
    map_k = packed ? first_key : 0;
    map_batch = packed ? 0 : b;
  }
  __device__ int QueryTiles() const { return (q_end + kRows - 1) / kRows; }
  // The first tile of queries that sees tile n of keys.
  __device__ int FirstQueryTile(int n) const {
    return max(0, n * kKeys - offset) / kRows;
  }
  // Whether any key is seen from tile m of queries.
  __device__ bool Sees(int m) const {
    return keys > 0 && m >= FirstQueryTile(0);
  }
};

// A block's piece of work: tile n of keys of a group; made by the loading
// thread, read by the others whenever they need it (few registers are theirs).
template <int kDim>
struct Item {
  int n;                       // -1: no more work
  int m_begin, m_end;          // tiles of queries; none if n is behind the keys
  int first_head, first_tile;  // the group's, and of its first head (b, n, 0)
  int group;
  Extent<kDim> sample;

  __device__ Item(const Params& p, int ticket)
      : sample(p.args, GroupAndTile(p, ticket)) {
    const int b = group / p.args.shape.kv_heads;
    group %= p.args.shape.kv_heads;
    first_head = group * p.ratio;
    first_tile = (b * p.args.shape.heads + first_head) * p.q_tiles;
    m_begin = sample.FirstQueryTile(n);
    m_end = n * kKeys < sample.keys ? sample.QueryTiles() : 0;
  }

 private:
  // Sets group (of all samples') and n; returns the sample.
  __device__ int GroupAndTile(const Params& p, int ticket) {
    const int chunk_size = p.heads_at_once * p.k_tiles;
    const int groups = p.args.shape.batch * p.args.shape.kv_heads;
    const int first = ticket / chunk_size * p.heads_at_once;
    const int wide = min(p.heads_at_once, groups - first);
    n = ticket % chunk_size / wide;
    group = first + ticket % chunk_size % wide;
    return group / p.args.shape.kv_heads;
  }
};

template <int kDim>
struct alignas(1024) Shared {
  static constexpr int kRows = kQueries<kDim>;

  __nv_bfloat16 k[kKeys * kDim], v[kKeys * kDim];
  __nv_bfloat16 q[kQStages][kRows * kDim];
  __nv_bfloat16 dout[kDoutStages][kRows * kDim];
  __nv_bfloat16 ds[2][kParts<kDim>][kKeys * 64];  // dS^T
  float dq[2][kHalf];                             // then dk, dv to store
  float nlse[kQStages][kRows];
  float delta[kDoutStages][kRows];
  uint64_t k_full, v_full, kv_empty;
  uint64_t q_full[kQStages], q_empty[kQStages];
  uint64_t dout_full[kDoutStages], dout_empty[kDoutStages];
  uint64_t dq_full[2], dq_empty[2];
  uint64_t item_full[2], item_empty[2];
  alignas(Item<kDim>) char items[2][sizeof(Item<kDim>)];

  __device__ const Item<kDim>& ItemAt(int stage) const {
    return *reinterpret_cast<const Item<kDim>*>(items[stage]);
  }
};

// A place in a ring of kStages buffers and the parity of its round.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Eight values of a row of a head, turned back from `position`: `own` are those
// from `column` on, `partner` those half a head away.
template <int kDim>
__device__ uint4 TurnBack(const AttentionBackwardArgs& args, int position,
                          int column, const __nv_bfloat16* own,
                          const __nv_bfloat16* partner) {
  constexpr int kHalfHead = kDim / 2;
  const int at = position * kHalfHead + column % kHalfHead;
  float x[8], y[8];
  Load(own, x);
  Load(partner, y);
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    float c[4], s[4];
    Load(static_cast<const float*>(args.cos) + at + i, c);
    Load(static_cast<const float*>(args.sin) + at + i, s);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float sine = column < kHalfHead ? s[k] : -s[k];
      x[i + k] = x[i + k] * c[k] + y[i + k] * sine;
    }
  }
  return make_uint4(
      sm90::PackBfloat16(x[0], x[1]), sm90::PackBfloat16(x[2], x[3]),
      sm90::PackBfloat16(x[4], x[5]), sm90::PackBfloat16(x[6], x[7]));
}

// ---- Instructions that only this file needs ---------------------------------

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline uint32_t MultiplyBfloat16(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}
// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void StoreMatrices(void* to, uint32_t a, uint32_t b,
                                     uint32_t c, uint32_t d) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
          SharedAddress(to)),
      "r"(a), "r"(b), "r"(c), "r"(d)
      : "memory");
}
__device__ inline void LoadMatrices(const void* from, uint32_t* to) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
      : "r"(SharedAddress(from))
      : "memory");
}
__device__ inline void BulkLoad(void* to, const void* from, uint32_t bytes,
                                uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1], %2, [%3];" ::"r"(SharedAddress(to)),
      "l"(from), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}
__device__ inline void BulkStore(void* to, const void* from, uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
      "r"(SharedAddress(from)), "r"(bytes)
      : "memory");
}
__device__ inline void BulkAdd(void* to, const void* from, uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32"
      " [%0], [%1], %2;" ::"l"(to),
      "r"(SharedAddress(from)), "r"(bytes)
      : "memory");
}
// Relaxed: a copy issued after it cannot come before it.
__device__ inline int LoadRelaxed(const int* from) {
  int x;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];"
               : "=r"(x)
               : "l"(from)
               : "memory");
  return x;
}
__device__ inline void StoreRelease(int* to, int x) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(x)
               : "memory");
}

// Programmatic dependent launch: the next kernel's blocks may take their places
// when all of this one's have started; they wait before they read its results.
__device__ inline void LetNextStart() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ inline void WaitForKernelBefore() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

}  // namespace mimo::kernels::sm90_backward

#endif  // MIMO_KERNELS_ATTENTION_ATTENTION_SM90_BACKWARD_CUH_
