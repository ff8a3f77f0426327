// The backward on Hopper, bfloat16, head sizes 64 and 128, in three kernels:
//   1. per row: delta, and -lse in units of log 2 (-inf: the row is hidden).
//   2. blocks take tiles of 128 keys of a group from a queue and go over tiles
//      of 64 queries, last to first, of the group's heads in turn. Two warp-
//      groups own 64 keys each: S^T = K Q^T and dP^T = V dO^T leave P^T and
//      dS^T in registers, where dV += P^T dO and dK += dS^T Q read them; dS
//      also goes through shared memory for dQ = dS K, of which each warpgroup
//      makes half of the columns. One thread loads (TMA), two add dQ in
//      float32 to memory.
//   3. dq from those sums, scaled, as bfloat16.
// A tile's dQ is the sum over tiles of keys in rising order: a counter for each
// half tile says which is next. Tiles of keys are handed out in rising order
// too (of `heads_at_once` groups side by side, so that those of one group start
// staggered), hence a block waits only for blocks that already run.
// While the tensor cores work on S of the next queries and dV, dS is computed;
// while on dK and the next dP, the exponentials.
// Sources: Dao 2023, arXiv:2307.08691; Shah et al. 2024, arXiv:2407.08608.
#include <algorithm>
#include <new>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/sm90.cuh"
#include "kernels/attention/visible_keys.h"
#include "kernels/base/cuda.cuh"

namespace mimo::kernels {
namespace {

using sm90::BarrierArrive;
using sm90::BarrierExpect;
using sm90::BarrierWait;
using sm90::ColumnsDescriptor;
using sm90::NamedBarrierSync;
using sm90::PackBfloat16;
using sm90::Pin;
using sm90::RowsDescriptor;
using sm90::SharedAddress;
using sm90::TmaLoad;
using sm90::Wgmma;
using sm90::WgmmaCommit;
using sm90::WgmmaFence;
using sm90::WgmmaWait;

constexpr int kQueries = 64, kKeys = 128;  // of a tile
constexpr int kQStages = 3, kDoutStages = 2;
// Of dQ's sums: 64 rows of 32 columns in thread order.
constexpr int kPiece = kQueries * 32;
constexpr int kThreads = 3 * sm90::kWarpgroup;
constexpr float kLog2E = 1.4426950408889634f;

struct Params {
  CUtensorMap q, k, v, dout;  // [batch][row][column], 64 columns a box
  AttentionBackwardArgs args;
  float* dq_sums;  // [B, N, M, 2, 64 * D/2]: halves of columns, thread order
  float* nlse;     // [B, N, M, 64], M = tiles of queries
  float* delta;    // [B, N, M, 64]
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
struct Extent {
  int first_query, first_key;
  int q_begin, q_end, k_begin, k_end, keys, offset;
  int map_q, map_k, map_batch;  // where the rows start in the tensor maps

  __device__ Extent(const AttentionBackwardArgs& args, int b) {
    const Sample s = SampleOf(args.shape, args.key_lengths, args.cu_seqlens, b);
    const bool packed = args.cu_seqlens != nullptr;
    q_begin = packed ? (kQueries - s.queries % kQueries) % kQueries : 0;
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
  __device__ int QueryTiles() const {
    return (q_end + kQueries - 1) / kQueries;
  }
  // The first tile of queries that sees tile n of keys, the last tile of keys
  // that tile m of queries sees (-1: none).
  __device__ int FirstQueryTile(int n) const {
    return max(0, n * kKeys - offset) / kQueries;
  }
  __device__ int LastKeyTile(int m) const {
    const int last = min(keys - 1, m * kQueries + kQueries - 1 + offset);
    return last < 0 ? -1 : last / kKeys;
  }
};

// A block's piece of work: tile n of keys of a group; made by the loading
// thread, read by the others whenever they need it (few registers are theirs).
struct Item {
  int n;                       // -1: no more work
  int m_begin, m_end;          // tiles of queries; none if n is behind the keys
  int first_head, first_tile;  // the group's, and of its first head (b, n, 0)
  int group;
  Extent sample;

  __device__ Item(const Params& p, int ticket)
      : sample(p.args, GroupAndTile(p, ticket)) {
    const AttentionShape& s = p.args.shape;
    const int b = group / s.kv_heads, ratio = s.heads / s.kv_heads;
    group %= s.kv_heads;
    first_head = group * ratio;
    first_tile = (b * s.heads + first_head) * p.q_tiles;
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
  __nv_bfloat16 k[kKeys * kDim], v[kKeys * kDim];
  __nv_bfloat16 q[kQStages][kQueries * kDim];
  __nv_bfloat16 dout[kDoutStages][kQueries * kDim];
  __nv_bfloat16 ds[2][kKeys * kQueries];  // dS^T
  float dq[2][kQueries * kDim / 2];       // a half each; then dk, dv to store
  float sums[2][kPiece];                  // of dQ, to become dq
  float nlse[kQStages][kQueries];
  float delta[kDoutStages][kQueries];
  uint64_t k_full, v_full, kv_empty;
  uint64_t q_full[kQStages], q_empty[kQStages];
  uint64_t dout_full[kDoutStages], dout_empty[kDoutStages];
  uint64_t dq_full[2], dq_empty[2];
  uint64_t sums_full[2];
  uint64_t item_full[2], item_empty[2];
  alignas(Item) char items[2][sizeof(Item)];

  __device__ const Item& ItemAt(int stage) const {
    return *reinterpret_cast<const Item*>(items[stage]);
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

// ---- Instructions that only this file needs ---------------------------------

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
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
__device__ inline int LoadAcquire(const int* from) {
  int x;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
               : "=r"(x)
               : "l"(from)
               : "memory");
  return x;
}
__device__ inline void StoreRelease(int* to, int x) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(x)
               : "memory");
}
// d = a b, which forgets what d was, and d += a b.
template <int kTransposeA, int kTransposeB>
__device__ inline void WgmmaFresh(float (&d)[16], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, p, "
      "1, 1, %18, %19;}\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]),
        "=f"(d[6]), "=f"(d[7]), "=f"(d[8]), "=f"(d[9]), "=f"(d[10]),
        "=f"(d[11]), "=f"(d[12]), "=f"(d[13]), "=f"(d[14]), "=f"(d[15])
      : "l"(a), "l"(b), "n"(kTransposeA), "n"(kTransposeB));
}
template <int kTransposeA, int kTransposeB>
__device__ inline void WgmmaMore(float (&d)[16], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, p, "
      "1, 1, %18, %19;}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
        "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]),
        "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "l"(a), "l"(b), "n"(kTransposeA), "n"(kTransposeB));
}
template <int kTransposeA, int kTransposeB>
__device__ inline void WgmmaFresh(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%"
      "20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, "
      "%34, %35;}\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]),
        "=f"(d[6]), "=f"(d[7]), "=f"(d[8]), "=f"(d[9]), "=f"(d[10]),
        "=f"(d[11]), "=f"(d[12]), "=f"(d[13]), "=f"(d[14]), "=f"(d[15]),
        "=f"(d[16]), "=f"(d[17]), "=f"(d[18]), "=f"(d[19]), "=f"(d[20]),
        "=f"(d[21]), "=f"(d[22]), "=f"(d[23]), "=f"(d[24]), "=f"(d[25]),
        "=f"(d[26]), "=f"(d[27]), "=f"(d[28]), "=f"(d[29]), "=f"(d[30]),
        "=f"(d[31])
      : "l"(a), "l"(b), "n"(kTransposeA), "n"(kTransposeB));
}
template <int kTransposeA, int kTransposeB>
__device__ inline void WgmmaMore(float (&d)[32], uint64_t a, uint64_t b) {
  Wgmma<kTransposeA, kTransposeB>(d, a, b, true);
}

// ---- The roles --------------------------------------------------------------

template <int kDim>
__device__ void Load(const Params& p, Shared<kDim>& shared) {
  const AttentionShape& s = p.args.shape;
  const int tickets = s.batch * s.kv_heads * p.k_tiles;
  Ring<2> slot;
  Ring<kQStages> q;
  Ring<kDoutStages> dout;
  uint32_t kv_parity = 1;
  for (;; slot.Next()) {
    BarrierWait(&shared.item_empty[slot.stage], slot.parity ^ 1);
    const int ticket = atomicAdd(p.ticket, 1);
    Item* to = reinterpret_cast<Item*>(shared.items[slot.stage]);
    if (ticket < tickets) {
      new (to) Item(p, ticket);
    } else {
      to->n = -1;
    }
    BarrierArrive(&shared.item_full[slot.stage]);
    if (ticket >= tickets) return;
    const Item& item = shared.ItemAt(slot.stage);
    if (item.m_begin >= item.m_end) continue;
    const auto load = [&](const CUtensorMap* map, __nv_bfloat16* to, int rows,
                          int x, int y, uint64_t* barrier) {
      for (int c = 0; c < kDim; c += 64) {
        TmaLoad(to + rows * c, map, barrier, x + c, y, item.sample.map_batch);
      }
    };
    BarrierWait(&shared.kv_empty, kv_parity);
    kv_parity ^= 1;
    const auto load_keys = [&](const CUtensorMap* map, __nv_bfloat16* to,
                               uint64_t* barrier) {
      BarrierExpect(barrier, kKeys * kDim * 2);
      load(map, to, kKeys, item.group * kDim,
           item.sample.map_k + item.n * kKeys, barrier);
    };
    load_keys(&p.k, shared.k, &shared.k_full);
    bool first = true;
    for (int h = 0; h < p.ratio; ++h) {
      for (int m = item.m_end - 1; m >= item.m_begin; --m) {
        const auto load_queries = [&](const CUtensorMap* map, const float* row,
                                      __nv_bfloat16* to, float* row_to,
                                      uint64_t* barrier) {
          BarrierExpect(barrier, kQueries * (kDim * 2 + 4));
          load(map, to, kQueries, (item.first_head + h) * kDim,
               item.sample.map_q + m * kQueries, barrier);
          const int64_t tile = item.first_tile + h * p.q_tiles + m;
          BulkLoad(row_to, row + tile * kQueries, kQueries * 4, barrier);
        };
        BarrierWait(&shared.q_empty[q.stage], q.parity ^ 1);
        load_queries(&p.q, p.nlse, shared.q[q.stage], shared.nlse[q.stage],
                     &shared.q_full[q.stage]);
        q.Next();
        if (first) load_keys(&p.v, shared.v, &shared.v_full);
        first = false;
        BarrierWait(&shared.dout_empty[dout.stage], dout.parity ^ 1);
        load_queries(&p.dout, p.delta, shared.dout[dout.stage],
                     shared.delta[dout.stage], &shared.dout_full[dout.stage]);
        dout.Next();
      }
    }
  }
}

// Adds half `half` of every dQ to memory, in its turn. By a thread.
template <int kDim>
__device__ void AddQueryGradients(const Params& p, Shared<kDim>& shared,
                                  int half) {
  constexpr int kHalf = kQueries * kDim / 2;
  uint32_t parity = 0;
  for (Ring<2> slot;; slot.Next()) {
    BarrierWait(&shared.item_full[slot.stage], slot.parity);
    const Item& item = shared.ItemAt(slot.stage);
    if (item.n < 0) return;
    for (int h = 0; h < p.ratio; ++h) {
      for (int m = item.m_end - 1; m >= item.m_begin; --m) {
        const int64_t tile = (item.first_tile + h * p.q_tiles + m) * 2 + half;
        float* sums = p.dq_sums + tile * kHalf;
        int* turn = p.turns + tile;
        BarrierWait(&shared.dq_full[half], parity);
        parity ^= 1;
        if (item.n == 0) {
          BulkStore(sums, shared.dq[half], kHalf * 4);
        } else {
          while (LoadAcquire(turn) != item.n) {
          }
          asm volatile("fence.proxy.async.global;" ::: "memory");
          BulkAdd(sums, shared.dq[half], kHalf * 4);
        }
        sm90::TmaStoreCommit();
        sm90::TmaStoreWait<0>();
        BarrierArrive(&shared.dq_empty[half]);
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        asm volatile("fence.proxy.async.global;" ::: "memory");
        StoreRelease(turn, item.n + 1);
      }
    }
    BarrierArrive(&shared.item_empty[slot.stage]);
  }
}

// dq of the tiles of queries whose last tile of keys this block had. By a warp.
template <int kDim>
__device__ void FinishQueryGradients(const Params& p, Shared<kDim>& shared) {
  const int lane = threadIdx.x % kWarp;
  constexpr int kPieces = kDim / 32;
  uint32_t parity = 0;
  for (Ring<2> slot;; slot.Next()) {
    BarrierWait(&shared.item_full[slot.stage], slot.parity);
    const Item& item = shared.ItemAt(slot.stage);
    if (item.n < 0) return;
    for (int h = 0; h < p.ratio; ++h) {
      for (int m = item.m_end - 1; m >= item.m_begin; --m) {
        if (item.sample.LastKeyTile(m) != item.n) continue;
        const int64_t tile = item.first_tile + h * p.q_tiles + m;
        const float* sums = p.dq_sums + tile * kQueries * kDim;
        const auto load = [&](int piece) {
          uint64_t* barrier = &shared.sums_full[piece % 2];
          BarrierExpect(barrier, kPiece * 4);
          BulkLoad(shared.sums[piece % 2], sums + piece * kPiece, kPiece * 4,
                   barrier);
        };
        if (lane == 0) {
          for (int half = 0; half < 2; ++half) {
            while (LoadAcquire(p.turns + tile * 2 + half) != item.n + 1) {
            }
          }
          asm volatile("fence.proxy.async.global;" ::: "memory");
          load(0);
          load(1);
        }
        const int stride = p.args.dq_stride;
        const int begin = item.sample.q_begin - m * kQueries;
        const int end = item.sample.q_end - m * kQueries;
        __nv_bfloat16* to =
            static_cast<__nv_bfloat16*>(p.args.dq) +
            int64_t{item.sample.first_query + m * kQueries + lane / 4} *
                stride +
            (item.first_head + h) * kDim + lane % 2 * 8 + lane / 2 % 2 * 4;
#pragma unroll 1
        for (int i = 0; i < kPieces; ++i) {
          BarrierWait(&shared.sums_full[i % 2], parity);
          if (i % 2 == 1) parity ^= 1;
          const float4* from =
              reinterpret_cast<const float4*>(shared.sums[i % 2]) + lane;
#pragma unroll 1
          for (int row = lane / 4; row < kQueries; row += 16) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {  // columns 16 k to 16 k + 15
              const float4 a = from[k * 256];
              const float4 b = from[k * 256 + 128];
              // An even lane keeps a and gets the next lane's, an odd one b.
              const float scale = p.scale;
              const uint32_t a0 = PackBfloat16(scale * a.x, scale * a.y);
              const uint32_t a1 = PackBfloat16(scale * a.z, scale * a.w);
              const uint32_t b0 = PackBfloat16(scale * b.x, scale * b.y);
              const uint32_t b1 = PackBfloat16(scale * b.z, scale * b.w);
              const bool odd = lane % 2;
              const uint32_t c0 = __shfl_xor_sync(~0u, odd ? a0 : b0, 1);
              const uint32_t c1 = __shfl_xor_sync(~0u, odd ? a1 : b1, 1);
              if (row >= begin && row < end) {
                *reinterpret_cast<uint2*>(to + k * 16) =
                    odd ? make_uint2(c0, b0) : make_uint2(a0, c0);
              }
              if (row + 8 >= begin && row + 8 < end) {
                *reinterpret_cast<uint2*>(to + 8 * stride + k * 16) =
                    odd ? make_uint2(c1, b1) : make_uint2(a1, c1);
              }
            }
            from += 32;
            to += 16 * stride;
          }
          to += 32 - kQueries * stride;
          __syncwarp();
          if (lane == 0 && i + 2 < kPieces) load(i + 2);
        }
      }
    }
    __syncwarp();
    if (lane == 0) BarrierArrive(&shared.item_empty[slot.stage]);
  }
}

// Writes scale * x, this warpgroup's 64 rows, to rows `begin` to `end` of `to`.
template <int kDim>
__device__ void StoreRows(const float (&x)[kDim / 2], float scale,
                          __nv_bfloat16* staging, __nv_bfloat16* to,
                          int64_t stride, int begin, int end, int barrier) {
  const int thread = threadIdx.x % sm90::kWarpgroup, lane = thread % kWarp;
  const int row = thread / kWarp * 16 + lane % 16;
#pragma unroll
  for (int j = 0; j < kDim / 16; ++j) {
    const int chunk = (2 * j + lane / 16) ^ (lane % 8);
    const float* y = x + 8 * j;
    StoreMatrices(staging + row * kDim + chunk * 8,
                  PackBfloat16(scale * y[0], scale * y[1]),
                  PackBfloat16(scale * y[2], scale * y[3]),
                  PackBfloat16(scale * y[4], scale * y[5]),
                  PackBfloat16(scale * y[6], scale * y[7]));
  }
  NamedBarrierSync(barrier, sm90::kWarpgroup);
  constexpr int kChunks = kDim / 8, kStep = sm90::kWarpgroup / kChunks;
#pragma unroll 4
  for (int r = thread / kChunks; r < 64; r += kStep) {
    const int chunk = thread % kChunks;
    if (r < begin || r >= end) continue;
    *reinterpret_cast<uint4*>(to + r * stride + chunk * 8) =
        *reinterpret_cast<const uint4*>(staging + r * kDim +
                                        (chunk ^ (r % 8)) * 8);
  }
  NamedBarrierSync(barrier, sm90::kWarpgroup);
}

// dk and dv, this warpgroup's 64 rows.
template <int kDim>
__device__ void StoreTile(const Params& p, Shared<kDim>& shared,
                          const Item& item, int half,
                          const float (&dk)[kDim / 2],
                          const float (&dv)[kDim / 2]) {
  const int key = item.n * kKeys + half * 64;
  const int begin = item.sample.k_begin - key;
  const int end = item.sample.k_end - key;
  const int64_t stride = p.args.dkv_stride;
  const int64_t at = (item.sample.first_key + key) * stride + item.group * kDim;
  auto* staging = reinterpret_cast<__nv_bfloat16*>(shared.dq[half]);
  StoreRows<kDim>(dv, 1, staging, static_cast<__nv_bfloat16*>(p.args.dv) + at,
                  stride, begin, end, 2 + half);
  StoreRows<kDim>(dk, p.scale, staging,
                  static_cast<__nv_bfloat16*>(p.args.dk) + at, stride, begin,
                  end, 2 + half);
}

template <int kDim>
__device__ void Compute(const Params& p, Shared<kDim>& shared, int half) {
  const int thread = threadIdx.x % sm90::kWarpgroup, lane = thread % kWarp;
  const float log2_scale = p.scale * kLog2E;
  const int key_of_thread = half * 64 + thread / kWarp * 16 + lane / 4;

  // Row-major operands: this warpgroup's 64 rows of k and v.
  const uint64_t k_rows = RowsDescriptor(shared.k + half * 64 * 64);
  const uint64_t v_rows = RowsDescriptor(shared.v + half * 64 * 64);
  const uint64_t k_columns =
      kDim == 128 ? ColumnsDescriptor(shared.k + half * kKeys * 64, kKeys)
                  : ColumnsDescriptor(shared.k, kKeys) + half * 4;
  __nv_bfloat16* const ds_row =
      shared.ds[0] + (half * 64 + thread / kWarp * 16 + lane % 16) * 64;

  const auto warp_arrive = [&](uint64_t* barrier) {
    if (lane == 0) BarrierArrive(barrier);
  };
  // x[64 keys, 64 queries] = rows of k or v times those of q or dout.
  const auto scores = [&](float(&x)[32], uint64_t keys,
                          const __nv_bfloat16* queries) {
    const uint64_t b = RowsDescriptor(queries);
    WgmmaFence();
    WgmmaFresh<0, 0>(x, keys, b);
#pragma unroll
    for (int i = 1; i < kDim / 16; ++i) {
      const int at = i % 4 * 2;
      WgmmaMore<0, 0>(x, keys + i / 4 * kKeys * 8 + at,
                      b + i / 4 * kQueries * 8 + at);
    }
    WgmmaCommit();
  };
  // y[64 keys, D] += x[64 keys, 64 queries] of registers times q or dout.
  const auto add_product = [&](float(&y)[kDim / 2], uint32_t(&x)[16],
                               const __nv_bfloat16* queries) {
    const uint64_t b = ColumnsDescriptor(queries, kQueries);
    Pin(x);
    Pin(y);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kQueries / 16; ++i)
      Wgmma<1>(y, x + 4 * i, b + 128 * i, true);
    WgmmaCommit();
  };

  Ring<kQStages> q;
  uint32_t steps = 0, kv_parity = 0;
  for (Ring<2> slot;; slot.Next()) {
    BarrierWait(&shared.item_full[slot.stage], slot.parity);
    const Item& item = shared.ItemAt(slot.stage);
    if (item.n < 0) return;

    float dk[kDim / 2], dv[kDim / 2];
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) dk[i] = dv[i] = 0;
    Pin(dk);
    Pin(dv);
    const int key0 = item.n * kKeys;
    const int keys = item.sample.keys, offset = item.sample.offset;
    int left = max(0, item.m_end - item.m_begin) * p.ratio;
    if (left > 0) {
      float z[32], dp[32];
      uint32_t pairs[16], ds[16];
      BarrierWait(&shared.k_full, kv_parity);
      BarrierWait(&shared.q_full[q.stage], q.parity);
      scores(z, k_rows, shared.q[q.stage]);
      BarrierWait(&shared.v_full, kv_parity);
      BarrierWait(&shared.dout_full[steps % 2], steps / 2 % 2);
      scores(dp, v_rows, shared.dout[steps % 2]);
      kv_parity ^= 1;
      WgmmaWait<1>();
      Pin(z);
      int m = item.m_end;
      bool first = true;
      // Adds one tile of queries; kMore: another one follows.
      const auto step = [&]<bool kMore>() {
        m = m == item.m_begin ? item.m_end - 1 : m - 1;
        const int turn = steps % 2;
        // P^T of the two rows; kMasked: some of it is hidden.
        const auto exponentials = [&]<bool kMasked>() {
          const float2* nlse =
              reinterpret_cast<const float2*>(shared.nlse[q.stage]) + lane % 4;
          const int key = key0 + key_of_thread;
          const int query = m * kQueries + offset + lane % 4 * 2;
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            const float2 l = nlse[4 * j];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              float low = fmaf(z[4 * j + 2 * r], log2_scale, l.x);
              float high = fmaf(z[4 * j + 2 * r + 1], log2_scale, l.y);
              if constexpr (kMasked) {
                const bool padding =
                    key + 8 * r < item.sample.k_begin | key + 8 * r >= keys;
                const int ahead = key + 8 * r - query - 8 * j;
                low = padding | (ahead > 0) ? -INFINITY : low;
                high = padding | (ahead > 1) ? -INFINITY : high;
              }
              pairs[2 * j + r] = PackBfloat16(Exp2(low), Exp2(high));
            }
          }
        };
        if (key0 < item.sample.k_begin || key0 + kKeys > keys ||
            key0 + kKeys - 1 > m * kQueries + offset) {
          exponentials.template operator()<true>();
        } else {
          exponentials.template operator()<false>();
        }
        WgmmaWait<0>();  // dK before, dP
        Pin(dp);
        const int q_stage = q.stage;
        if (!first) {
          warp_arrive(
              &shared.q_empty[q_stage == 0 ? kQStages - 1 : q_stage - 1]);
        }
        first = false;
        q.Next();
        add_product(dv, pairs, shared.dout[turn]);
        if constexpr (kMore) {
          BarrierWait(&shared.q_full[q.stage], q.parity);
          scores(z, k_rows, shared.q[q.stage]);
        }
        const float2* delta =
            reinterpret_cast<const float2*>(shared.delta[turn]) + lane % 4;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float2 d = delta[4 * j];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const uint32_t pair = pairs[2 * j + r];
            const float low = __uint_as_float(pair << 16);
            const float high = __uint_as_float(pair & 0xffff0000u);
            ds[2 * j + r] = PackBfloat16(low * (dp[4 * j + 2 * r] - d.x),
                                         high * (dp[4 * j + 2 * r + 1] - d.y));
          }
        }
        __nv_bfloat16* ds_to = ds_row + turn * kKeys * kQueries;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int chunk = (2 * j + lane / 16) ^ (lane % 8);
          StoreMatrices(ds_to + chunk * 8, ds[4 * j], ds[4 * j + 1],
                        ds[4 * j + 2], ds[4 * j + 3]);
        }
        sm90::FenceAsyncProxy();
        WgmmaWait<kMore ? 1 : 0>();  // dV
        Pin(pairs);
        warp_arrive(&shared.dout_empty[turn]);
        NamedBarrierSync(1, 2 * sm90::kWarpgroup);

        float dq[kDim / 4];
        {
          const uint64_t a = ColumnsDescriptor(shared.ds[turn], kKeys);
          WgmmaFence();
          WgmmaFresh<1, 1>(dq, a, k_columns);
#pragma unroll
          for (int k = 1; k < kKeys / 16; ++k)
            WgmmaMore<1, 1>(dq, a + 128 * k, k_columns + 128 * k);
          WgmmaCommit();
        }
        {
          const uint64_t a = RowsDescriptor(shared.ds[turn] + half * 64 * 64);
          const uint64_t b = ColumnsDescriptor(shared.q[q_stage], kQueries);
          Pin(dk);
          WgmmaFence();
#pragma unroll
          for (int i = 0; i < kQueries / 16; ++i)
            Wgmma<0, 1>(dk, a + 2 * i, b + 128 * i, true);
          WgmmaCommit();
        }
        WgmmaWait<1>();  // S of the next, dQ
        Pin(dq);
        Pin(z);
        BarrierWait(&shared.dq_empty[half], turn ^ 1);
        float4* dq_to = reinterpret_cast<float4*>(shared.dq[half]) + thread;
#pragma unroll
        for (int j = 0; j < kDim / 16; ++j) {
          dq_to[j * sm90::kWarpgroup] = make_float4(
              dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
        }
        sm90::FenceAsyncProxy();
        BarrierArrive(&shared.dq_full[half]);
        ++steps;
        if constexpr (kMore) {
          BarrierWait(&shared.dout_full[steps % 2], steps / 2 % 2);
          scores(dp, v_rows, shared.dout[steps % 2]);
        }
      };
      for (; left > 1; --left) step.template operator()<true>();
      step.template operator()<false>();
      WgmmaWait<0>();
      Pin(dk);
      Pin(dv);
      warp_arrive(&shared.q_empty[q.stage == 0 ? kQStages - 1 : q.stage - 1]);
      warp_arrive(&shared.kv_empty);
      BarrierWait(&shared.dq_empty[half], steps % 2 ^ 1);
    }
    StoreTile<kDim>(p, shared, item, half, dk, dv);
    __syncwarp();
    warp_arrive(&shared.item_empty[slot.stage]);
  }
}

template <int kDim>
__global__ __launch_bounds__(kThreads, 1) void TilesKernel(
    const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(memory);
  constexpr int kComputeWarps = 8;
  static_assert(sizeof(Shared<kDim>) <= 227 * 1024);
  if (threadIdx.x == 0) {
    sm90::BarrierInit(&shared.k_full, 1);
    sm90::BarrierInit(&shared.v_full, 1);
    sm90::BarrierInit(&shared.kv_empty, kComputeWarps);
    for (int i = 0; i < kQStages; ++i) {
      sm90::BarrierInit(&shared.q_full[i], 1);
      sm90::BarrierInit(&shared.q_empty[i], kComputeWarps);
    }
    for (int i = 0; i < kDoutStages; ++i) {
      sm90::BarrierInit(&shared.dout_full[i], 1);
      sm90::BarrierInit(&shared.dout_empty[i], kComputeWarps);
    }
    for (int i = 0; i < 2; ++i) {
      sm90::BarrierInit(&shared.dq_full[i], sm90::kWarpgroup);
      sm90::BarrierInit(&shared.dq_empty[i], 1);
      sm90::BarrierInit(&shared.item_full[i], 1);
      sm90::BarrierInit(&shared.item_empty[i], kComputeWarps + 3);
      sm90::BarrierInit(&shared.sums_full[i], 1);
    }
    sm90::FenceBarrierInit();
  }
  __syncthreads();
  const int warp = threadIdx.x / kWarp;
  if (warp < 4) {
    sm90::ShrinkRegisters<kDim == 128 ? 24 : 40>();
    if (threadIdx.x % kWarp == 0) {
      if (warp == 0) Load<kDim>(p, shared);
      if (warp == 1 || warp == 2) AddQueryGradients<kDim>(p, shared, warp - 1);
    }
    if (warp == 3) FinishQueryGradients<kDim>(p, shared);
  } else {
    sm90::GrowRegisters<kDim == 128 ? 240 : 232>();
    Compute<kDim>(p, shared, warp / 4 - 1);
  }
}

// A block for each tile of queries of a head; fills nlse and delta behind the
// sample's end too, and starts the counters.
template <int kDim>
__global__ __launch_bounds__(256) void PrepareKernel(
    const __grid_constant__ Params p) {
  const int m = blockIdx.x, n = blockIdx.y, b = blockIdx.z;
  const AttentionShape& s = p.args.shape;
  const Extent sample(p.args, b);
  const int64_t tile = (b * s.heads + n) * p.q_tiles + m;
  if (threadIdx.x < 2) p.turns[tile * 2 + threadIdx.x] = 0;
  if (tile == 0 && threadIdx.x == 0) *p.ticket = 0;
  constexpr int kLanes = kDim / 8;
  const bool unseen = sample.LastKeyTile(m) < 0;
  for (int r = threadIdx.x / kLanes; r < kQueries; r += 256 / kLanes) {
    const int i = m * kQueries + r;
    const bool real = i >= sample.q_begin && i < sample.q_end;
    if (unseen && real) {
      *reinterpret_cast<uint4*>(
          static_cast<__nv_bfloat16*>(p.args.dq) +
          int64_t{sample.first_query + i} * p.args.dq_stride + n * kDim +
          threadIdx.x % kLanes * 8) = make_uint4(0, 0, 0, 0);
    }
    float delta = 0, nlse = -INFINITY;
    if (real) {
      const int64_t at = int64_t{sample.first_query + i} * s.heads * kDim +
                         n * kDim + threadIdx.x % kLanes * 8;
      float o[8], dout[8];
      mimo::Load(static_cast<const __nv_bfloat16*>(p.args.out) + at, o);
      mimo::Load(static_cast<const __nv_bfloat16*>(p.args.dout) + at, dout);
#pragma unroll
      for (int e = 0; e < 8; ++e) delta += o[e] * dout[e];
      const float lse = static_cast<const float*>(
          p.args.lse)[(b * s.heads + n) * s.seq_q + i - sample.q_begin];
      if (lse != -INFINITY) nlse = -kLog2E * lse;
    }
#pragma unroll
    for (int lane = kLanes / 2; lane > 0; lane /= 2)
      delta += __shfl_xor_sync(0xffffffff, delta, lane);
    if (threadIdx.x % kLanes == 0) {
      p.nlse[tile * kQueries + r] = nlse;
      p.delta[tile * kQueries + r] = delta;
    }
  }
}

struct Workspace {
  int64_t nlse, delta, turns, ticket, bytes;  // offsets; dq_sums is first
};
Workspace WorkspaceOf(const AttentionShape& s) {
  const int64_t tiles = s.batch * s.heads * CeilDiv(s.seq_q, kQueries);
  Workspace w;
  w.nlse = tiles * kQueries * s.head_dim * 4;
  w.delta = w.nlse + tiles * kQueries * 4;
  w.turns = w.delta + tiles * kQueries * 4;
  w.ticket = w.turns + tiles * 2 * 4;
  w.bytes = w.ticket + 4;
  return w;
}

template <int kDim>
void Launch(const AttentionBackwardArgs& args, Stream stream,
            int heads_at_once) {
  const AttentionShape& s = args.shape;
  const bool packed = args.cu_seqlens != nullptr;
  const auto map = [&](const void* base, int64_t heads, int64_t rows,
                       int64_t stride, uint32_t box_rows) {
    const uint64_t batch = packed ? 1 : s.batch;
    const uint64_t all_rows = packed ? s.batch * rows : rows;
    return sm90::MakeTensorMap<3>(
        base, {static_cast<uint64_t>(heads * kDim), all_rows, batch},
        {static_cast<uint64_t>(stride) * 2, all_rows * stride * 2},
        {64, box_rows, 1});
  };
  const Workspace w = WorkspaceOf(s);
  char* base = static_cast<char*>(args.workspace);
  Params p{.q = map(args.q, s.heads, s.seq_q, args.q_stride, kQueries),
           .k = map(args.k, s.kv_heads, s.seq_k, args.kv_stride, kKeys),
           .v = map(args.v, s.kv_heads, s.seq_k, args.kv_stride, kKeys),
           .dout = map(args.dout, s.heads, s.seq_q, s.heads * kDim, kQueries),
           .args = args,
           .dq_sums = reinterpret_cast<float*>(base),
           .nlse = reinterpret_cast<float*>(base + w.nlse),
           .delta = reinterpret_cast<float*>(base + w.delta),
           .turns = reinterpret_cast<int*>(base + w.turns),
           .ticket = reinterpret_cast<int*>(base + w.ticket),
           .q_tiles = static_cast<int>(CeilDiv(s.seq_q, kQueries)),
           .k_tiles = static_cast<int>(CeilDiv(s.seq_k, kKeys)),
           .ratio = static_cast<int>(s.heads / s.kv_heads),
           .heads_at_once = heads_at_once,
           .scale = static_cast<float>(s.scale)};
  const int64_t tickets = s.batch * s.kv_heads * p.k_tiles;
  const dim3 tiles(p.q_tiles, s.heads, s.batch);
  const cudaStream_t raw = RawStream(stream);
  static const bool once = [] {
    MIMO_CUDA_CHECK(cudaFuncSetAttribute(
        TilesKernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
        sizeof(Shared<kDim>)));
    return true;
  }();
  (void)once;
  PrepareKernel<kDim><<<tiles, 256, 0, raw>>>(p);
  TilesKernel<kDim><<<std::min<int64_t>(tickets, NumSms()), kThreads,
                      sizeof(Shared<kDim>), raw>>>(p);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

bool AttentionBackwardSm90Takes(const AttentionBackwardArgs& args) {
  const AttentionShape& s = args.shape;
  return args.dtype == DType::kBFloat16 &&
         (s.head_dim == 64 || s.head_dim == 128) && s.batch > 0 &&
         s.seq_q > 0 && s.seq_k > 0 && s.scale > 0 && args.q_stride % 8 == 0 &&
         args.kv_stride % 8 == 0 && args.dq_stride % 8 == 0 &&
         args.dkv_stride % 8 == 0;
}

int64_t AttentionBackwardSm90WorkspaceBytes(const AttentionShape& shape) {
  return WorkspaceOf(shape).bytes;
}

void AttentionBackwardSm90(const AttentionBackwardArgs& args, Stream stream) {
  const AttentionShape& s = args.shape;
  // Twice as many tiles of keys side by side as there are multiprocessors.
  const int heads_at_once =
      std::max<int64_t>(1, 2 * NumSms() / CeilDiv(s.seq_k, kKeys));
  if (s.head_dim == 64) {
    Launch<64>(args, stream, heads_at_once);
  } else {
    Launch<128>(args, stream, heads_at_once);
  }
}

}  // namespace mimo::kernels
