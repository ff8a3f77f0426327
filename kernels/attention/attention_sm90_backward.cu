// The backward on Hopper, bfloat16, head sizes 64 and 128, in three kernels:
//   1. For each query: delta, and -lse in units of log 2 (-inf: it is hidden).
//   2. A block takes tiles of 128 keys of a group from a queue. For one it goes
//      over tiles of 8192/D queries, last to first, of the group's heads in
//      turn, in parts of 64. Two warpgroups own 64 keys each: S^T = K Q^T and
//      dP^T = V dO^T leave P^T and dS^T in registers; dV += P^T dO reads P^T
//      there, dK += dS^T Q and dQ = dS K read dS from shared memory. Of dQ a
//      warpgroup makes half. One thread loads (TMA), two add the halves of dQ
//      to float32 sums in memory.
//   3. dq from those sums, scaled, as bfloat16.
// dq and dk are turned back by a rotary embedding where they are stored.
// A dQ is summed over tiles of keys in rising order: a counter for each half
// says whose turn it is. Tiles of keys are handed out in rising order too (of
// `heads_at_once` groups side by side, so that those of one group start
// staggered), hence a block waits only for blocks that already run.
// S of the next queries and dV run on the tensor cores while dS is computed, dK
// and the next dP during the exponentials.
// Sources: Dao 2023, arXiv:2307.08691; Shah et al. 2024, arXiv:2407.08608.
// Length: the second kernel's roles only make sense together.
#include <algorithm>
#include <new>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_sm90_backward.cuh"

namespace mimo::kernels {
namespace {

using namespace sm90_backward;  // NOLINT: this file's other half
using sm90::BarrierArrive;
using sm90::BarrierExpect;
using sm90::BarrierWait;
using sm90::ColumnsDescriptor;
using sm90::NamedBarrierSync;
using sm90::PackBfloat16;
using sm90::Pin;
using sm90::RowsDescriptor;
using sm90::TmaLoad;
using sm90::Wgmma;
using sm90::WgmmaCommit;
using sm90::WgmmaFence;
using sm90::WgmmaWait;

// ---- The roles --------------------------------------------------------------

template <int kDim>
__device__ void Load(const Params& p, Shared<kDim>& shared) {
  constexpr int kRows = kQueries<kDim>;
  const AttentionShape& s = p.args.shape;
  const int tickets = s.batch * s.kv_heads * p.k_tiles;
  WaitForKernelBefore();
  Ring<2> slot;
  Ring<kQStages> q;
  Ring<kDoutStages> dout;
  uint32_t kv_parity = 1, step = 0;
  // Nlse and delta are replaced when each thread that read them has handed over
  // its part of that step's dQ: a lane that says for its warp that a tile is
  // free, after __syncwarp, racecheck takes to speak for itself.
  const auto wait_for_readers = [&](uint32_t step) {
    BarrierWait(&shared.dq_full[0], step % 2);
    BarrierWait(&shared.dq_full[1], step % 2);
  };
  for (;; slot.Next()) {
    BarrierWait(&shared.item_empty[slot.stage], slot.parity ^ 1);
    const int ticket = atomicAdd(p.ticket, 1);
    auto* to = reinterpret_cast<Item<kDim>*>(shared.items[slot.stage]);
    if (ticket < tickets) {
      new (to) Item<kDim>(p, ticket);
    } else {
      to->n = -1;
    }
    BarrierArrive(&shared.item_full[slot.stage]);
    if (ticket >= tickets) return;
    const Item<kDim>& item = shared.ItemAt(slot.stage);
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
    wait_for_readers(step - 1);
    const uint32_t first = step;
    for (int h = 0; h < p.ratio; ++h) {
      for (int m = item.m_end - 1; m >= item.m_begin; --m) {
        const int64_t row =
            int64_t{item.first_tile + h * p.q_tiles + m} * kRows;
        const auto load_queries = [&](const CUtensorMap* map, __nv_bfloat16* to,
                                      uint64_t* barrier) {
          BarrierExpect(barrier, kRows * (kDim * 2 + 4));
          load(map, to, kRows, (item.first_head + h) * kDim,
               item.sample.map_q + m * kRows, barrier);
        };
        BarrierWait(&shared.q_empty[q.stage], q.parity ^ 1);
        load_queries(&p.q, shared.q[q.stage], &shared.q_full[q.stage]);
        BulkLoad(shared.nlse[q.stage], p.nlse + row, kRows * 4,
                 &shared.q_full[q.stage]);
        q.Next();
        if (step == first) load_keys(&p.v, shared.v, &shared.v_full);
        BarrierWait(&shared.dout_empty[dout.stage], dout.parity ^ 1);
        load_queries(&p.dout, shared.dout[dout.stage],
                     &shared.dout_full[dout.stage]);
        if (step - first >= 2) wait_for_readers(step - 2);
        BulkLoad(shared.delta[dout.stage], p.delta + row, kRows * 4,
                 &shared.dout_full[dout.stage]);
        ++step;
        dout.Next();
      }
    }
  }
}

// Adds half `half` of every dQ to memory, in its turn. By a thread.
template <int kDim>
__device__ void AddQueryGradients(const Params& p, Shared<kDim>& shared,
                                  int half) {
  uint32_t parity = 0;
  for (Ring<2> slot;; slot.Next()) {
    BarrierWait(&shared.item_full[slot.stage], slot.parity);
    const Item<kDim>& item = shared.ItemAt(slot.stage);
    if (item.n < 0) return;
    bool ready = item.n == 0;
    for (int h = 0; h < p.ratio; ++h) {
      const int first = (item.first_tile + h * p.q_tiles) * 2 + half;
      for (int m = item.m_end - 1; m >= item.m_begin; --m) {
        int* turn = p.turns + first + m * 2;
        float* sums = p.dq_sums + int64_t{first + m * 2} * kHalf;
        while (!ready) ready = LoadRelaxed(turn) == item.n;
        BarrierWait(&shared.dq_full[half], parity);
        parity ^= 1;
        asm volatile("fence.proxy.async.global;" ::: "memory");
        if (item.n == 0) {
          BulkStore(sums, shared.dq[half], kHalf * 4);
        } else {
          BulkAdd(sums, shared.dq[half], kHalf * 4);
        }
        sm90::TmaStoreCommit();
        // Meanwhile: is the next one's turn already there?
        if (m > item.m_begin && item.n > 0)
          ready = LoadRelaxed(turn - 2) == item.n;
        else
          ready = item.n == 0;
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

// Writes scale * x, this warpgroup's 64 rows, to rows `begin` to `end` of `to`;
// kTurned: turned back, row `begin` from position 0.
template <int kDim, bool kTurned>
__device__ void StoreRows(const AttentionBackwardArgs& args,
                          const float (&x)[kDim / 2], float scale,
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
    const __nv_bfloat16* row = staging + r * kDim;
    const int place = chunk ^ (r % 8);
    uint4 values = *reinterpret_cast<const uint4*>(row + place * 8);
    if (kTurned && args.cos != nullptr) {
      values = TurnBack<kDim>(args, r - begin, chunk * 8, row + place * 8,
                              row + (place ^ (kDim / 16)) * 8);
    }
    *reinterpret_cast<uint4*>(to + r * stride + chunk * 8) = values;
  }
  NamedBarrierSync(barrier, sm90::kWarpgroup);
}

// dk and dv, this warpgroup's 64 rows.
template <int kDim>
__device__ void StoreTile(const Params& p, Shared<kDim>& shared,
                          const Item<kDim>& item, int half,
                          const float (&dk)[kDim / 2],
                          const float (&dv)[kDim / 2]) {
  const int key = item.n * kKeys + half * 64;
  const int begin = item.sample.k_begin - key;
  const int end = item.sample.k_end - key;
  const int64_t stride = p.args.dkv_stride;
  const int64_t at = (item.sample.first_key + key) * stride + item.group * kDim;
  auto* staging = reinterpret_cast<__nv_bfloat16*>(shared.dq[half]);
  StoreRows<kDim, false>(p.args, dv, 1, staging,
                         static_cast<__nv_bfloat16*>(p.args.dv) + at, stride,
                         begin, end, 2 + half);
  StoreRows<kDim, true>(p.args, dk, p.scale, staging,
                        static_cast<__nv_bfloat16*>(p.args.dk) + at, stride,
                        begin, end, 2 + half);
}

template <int kDim>
__device__ void Compute(const Params& p, Shared<kDim>& shared, int half) {
  constexpr int kRows = kQueries<kDim>;
  const int thread = threadIdx.x % sm90::kWarpgroup, lane = thread % kWarp;
  const float log2_scale = p.scale * kLog2E;
  const int key_of_thread = half * 64 + thread / kWarp * 16 + lane / 4;

  // For dQ: of 128 columns this warpgroup makes 64, of 128 queries 64.
  const uint64_t k_columns = ColumnsDescriptor(
      shared.k + (kDim == 128 ? half * kKeys * 64 : 0), kKeys);
  const int dq_part = kDim == 128 ? 0 : half;
  __nv_bfloat16* const ds_row =
      shared.ds[0][0] + (half * 64 + thread / kWarp * 16 + lane % 16) * 64;

  const auto warp_arrive = [&](uint64_t* barrier) {
    __syncwarp();  // the other lanes' reads come before, too
    if (lane == 0) BarrierArrive(barrier);
  };
  // This warpgroup's 64 rows of k or v as wgmma's left operand; 64 columns are
  // held in registers, 128 stay in shared memory.
  struct Rows {
    uint32_t held[kDim == 64 ? 16 : 1];
    uint64_t shared;
  };
  const auto take_rows = [&](Rows& rows, const __nv_bfloat16* from) {
    rows.shared = RowsDescriptor(from + half * 64 * 64);
    if constexpr (kDim == 64) {
      const int row = half * 64 + thread / kWarp * 16 + lane % 16;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int chunk = (2 * i + lane / 16) ^ (lane % 8);
        LoadMatrices(from + row * 64 + chunk * 8, rows.held + 4 * i);
      }
    }
  };
  // x[64 keys, 64 queries] = rows of k or v times those of q or dout.
  const auto scores = [&](float(&x)[32], const Rows& rows,
                          const __nv_bfloat16* queries) {
    const uint64_t b = RowsDescriptor(queries);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const int at = i % 4 * 2;
      if constexpr (kDim == 64) {
        Wgmma<0>(x, rows.held + 4 * i, b + at, i > 0);
      } else {
        Wgmma<0, 0>(x, rows.shared + i / 4 * kKeys * 8 + at,
                    b + i / 4 * kRows * 8 + at, i > 0);
      }
    }
    WgmmaCommit();
  };
  // y[64 keys, D] += x[64 keys, 64 queries] of registers times q or dout.
  const auto add_product = [&](float(&y)[kDim / 2], uint32_t(&x)[16],
                               const __nv_bfloat16* queries) {
    const uint64_t b = ColumnsDescriptor(queries, kRows);
    Pin(x);
    Pin(y);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < 4; ++i) Wgmma<1>(y, x + 4 * i, b + 128 * i, true);
    WgmmaCommit();
  };

  Ring<kQStages> q;
  uint32_t steps = 0, kv_parity = 0;
  for (Ring<2> slot;; slot.Next()) {
    BarrierWait(&shared.item_full[slot.stage], slot.parity);
    const Item<kDim>& item = shared.ItemAt(slot.stage);
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
      Rows k_rows, v_rows;
      BarrierWait(&shared.k_full, kv_parity);
      take_rows(k_rows, shared.k);
      BarrierWait(&shared.q_full[q.stage], q.parity);
      scores(z, k_rows, shared.q[q.stage]);
      BarrierWait(&shared.v_full, kv_parity);
      take_rows(v_rows, shared.v);
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
        const int q_stage = q.stage;
        q.Next();
#pragma unroll
        for (int part = 0; part < kParts<kDim>; ++part) {
          const bool last = part + 1 == kParts<kDim>;
          // P^T of the two rows; kMasked: some of it is hidden.
          const auto exponentials = [&]<bool kMasked>() {
            const float2* nlse = reinterpret_cast<const float2*>(
                                     shared.nlse[q_stage] + part * 64) +
                                 lane % 4;
            const int key = key0 + key_of_thread;
            const int query = m * kRows + part * 64 + offset + lane % 4 * 2;
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
          if (part > 0) {
            WgmmaWait<1>();  // dV and S; dP runs
            Pin(z);
            Pin(pairs);
          }
          if (key0 < item.sample.k_begin || key0 + kKeys > keys ||
              key0 + kKeys - 1 > m * kRows + part * 64 + offset) {
            exponentials.template operator()<true>();
          } else {
            exponentials.template operator()<false>();
          }
          WgmmaWait<0>();  // dP; dK before
          Pin(dp);
          if (part == 0) {
            if (!first) {
              warp_arrive(
                  &shared.q_empty[q_stage == 0 ? kQStages - 1 : q_stage - 1]);
            }
            first = false;
          }
          add_product(dv, pairs, shared.dout[turn] + part * 64 * 64);
          if (!last) {
            scores(z, k_rows, shared.q[q_stage] + (part + 1) * 64 * 64);
          } else if constexpr (kMore) {
            BarrierWait(&shared.q_full[q.stage], q.parity);
            scores(z, k_rows, shared.q[q.stage]);
          }
          const float2* delta =
              reinterpret_cast<const float2*>(shared.delta[turn] + part * 64) +
              lane % 4;
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            const float2 d = delta[4 * j];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              // Two at once, rounded once more: 2^-9 beside P's and dS's.
              ds[2 * j + r] = MultiplyBfloat16(
                  pairs[2 * j + r], PackBfloat16(dp[4 * j + 2 * r] - d.x,
                                                 dp[4 * j + 2 * r + 1] - d.y));
            }
          }
          __nv_bfloat16* ds_to =
              ds_row + (turn * kParts<kDim> + part) * kKeys * 64;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int chunk = (2 * j + lane / 16) ^ (lane % 8);
            StoreMatrices(ds_to + chunk * 8, ds[4 * j], ds[4 * j + 1],
                          ds[4 * j + 2], ds[4 * j + 3]);
          }
          if (!last)
            scores(dp, v_rows, shared.dout[turn] + (part + 1) * 64 * 64);
        }
        sm90::FenceAsyncProxy();
        WgmmaWait<kMore ? 1 : 0>();  // dV
        Pin(pairs);
        warp_arrive(&shared.dout_empty[turn]);
        NamedBarrierSync(1, 2 * sm90::kWarpgroup);

        float dq[32];
        {
          const uint64_t a = ColumnsDescriptor(shared.ds[turn][dq_part], kKeys);
          WgmmaFence();
#pragma unroll
          for (int k = 0; k < kKeys / 16; ++k)
            Wgmma<1, 1>(dq, a + 128 * k, k_columns + 128 * k, k > 0);
          WgmmaCommit();
        }
        Pin(dk);
        WgmmaFence();
#pragma unroll
        for (int part = 0; part < kParts<kDim>; ++part) {
          const uint64_t a =
              RowsDescriptor(shared.ds[turn][part] + half * 64 * 64);
          const uint64_t b =
              ColumnsDescriptor(shared.q[q_stage] + part * 64 * 64, kRows);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            Wgmma<0, 1>(dk, a + 2 * i, b + 128 * i, true);
        }
        WgmmaCommit();
        WgmmaWait<1>();  // S of the next, dQ
        Pin(dq);
        Pin(z);
        BarrierWait(&shared.dq_empty[half], turn ^ 1);
        float4* dq_to = reinterpret_cast<float4*>(shared.dq[half]) + thread;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          dq_to[j * sm90::kWarpgroup] = make_float4(
              dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
        }
        ++steps;
        if constexpr (kMore) {
          BarrierWait(&shared.dout_full[steps % 2], steps / 2 % 2);
          scores(dp, v_rows, shared.dout[steps % 2]);
        }
        sm90::FenceAsyncProxy();  // late: here the stores are over
        BarrierArrive(&shared.dq_full[half]);
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
      sm90::BarrierInit(&shared.item_empty[i], kComputeWarps + 2);
    }
    sm90::FenceBarrierInit();
  }
  __syncthreads();
  LetNextStart();
  const int warp = threadIdx.x / kWarp;
  if (warp < 4) {
    sm90::ShrinkRegisters<24>();
    if (threadIdx.x % kWarp == 0) {
      if (warp == 0) Load<kDim>(p, shared);
      if (warp == 1 || warp == 2) AddQueryGradients<kDim>(p, shared, warp - 1);
    }
  } else {
    sm90::GrowRegisters<240>();
    Compute<kDim>(p, shared, warp / 4 - 1);
  }
}

// nlse and delta, also of the rows around the sample's; zeroes dq where no key
// is seen, and the counters. A block for each tile of queries of a head.
template <int kDim>
__global__ __launch_bounds__(256) void PrepareKernel(
    const __grid_constant__ Params p) {
  const AttentionShape& s = p.args.shape;
  LetNextStart();
  // Last sample first: what the next kernel starts with is then in L2.
  const int n = blockIdx.x, m = blockIdx.y, b = s.batch - 1 - blockIdx.z;
  const Extent<kDim> sample(p.args, b);
  constexpr int kRows = kQueries<kDim>;
  const int64_t tile = (b * s.heads + n) * p.q_tiles + m;
  if (threadIdx.x < 2) p.turns[tile * 2 + threadIdx.x] = 0;
  if (tile == 0 && threadIdx.x == 0) *p.ticket = 0;
  constexpr int kLanes = kDim / 8, kStep = 256 / kLanes;
  constexpr int kPasses = kRows / kStep;
  const int r = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int64_t column = n * kDim + lane * 8;
  const auto* out = static_cast<const __nv_bfloat16*>(p.args.out) + column;
  const auto* dout = static_cast<const __nv_bfloat16*>(p.args.dout) + column;
  const float* lse = static_cast<const float*>(p.args.lse) +
                     (b * s.heads + n) * s.seq_q - sample.q_begin;
  if (m >= sample.QueryTiles()) return;
  uint4 x[kPasses], y[kPasses];  // all loads in flight at once
  float delta[kPasses], nlse[kPasses];
#pragma unroll
  for (int k = 0; k < kPasses; ++k) {
    const int i =
        min(max(m * kRows + r + k * kStep, sample.q_begin), sample.q_end - 1);
    const int64_t at = int64_t{sample.first_query + i} * s.heads * kDim;
    x[k] = *reinterpret_cast<const uint4*>(out + at);
    y[k] = *reinterpret_cast<const uint4*>(dout + at);
    nlse[k] = -kLog2E * lse[i];
  }
#pragma unroll
  for (int k = 0; k < kPasses; ++k) {
    const int i = m * kRows + r + k * kStep;
    const bool real = i >= sample.q_begin && i < sample.q_end;
    if (!real || nlse[k] == INFINITY) nlse[k] = -INFINITY;
    float a[8], b[8];
    mimo::Load(reinterpret_cast<const __nv_bfloat16*>(&x[k]), a);
    mimo::Load(reinterpret_cast<const __nv_bfloat16*>(&y[k]), b);
    delta[k] = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e) delta[k] += a[e] * b[e];
    if (real && !sample.Sees(m)) {
      auto* dq = static_cast<__nv_bfloat16*>(p.args.dq) + column;
      *reinterpret_cast<uint4*>(dq + int64_t{sample.first_query + i} *
                                         p.args.dq_stride) =
          make_uint4(0, 0, 0, 0);
    }
  }
#pragma unroll
  for (int k = 0; k < kPasses; ++k) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2)
      delta[k] += __shfl_xor_sync(0xffffffff, delta[k], step);
    if (lane == 0) {
      p.nlse[tile * kRows + r + k * kStep] = nlse[k];
      p.delta[tile * kRows + r + k * kStep] = delta[k];
    }
  }
}

// dq of the sums. A block for each tile of queries of a head.
template <int kDim>
__global__ __launch_bounds__(256) void FinishKernel(
    const __grid_constant__ Params p) {
  const AttentionShape& s = p.args.shape;
  WaitForKernelBefore();
  // Last sample first: its sums may still be in L2.
  const int n = blockIdx.x, m = blockIdx.y, b = s.batch - 1 - blockIdx.z;
  const Extent<kDim> sample(p.args, b);
  constexpr int kRows = kQueries<kDim>;
  if (m >= sample.QueryTiles() || !sample.Sees(m)) return;
  constexpr int kRow = kDim + 8;  // 16 bytes of padding
  __shared__ __align__(16) __nv_bfloat16 staging[kRows * kRow];
  const int half = threadIdx.x / sm90::kWarpgroup;
  const int thread = threadIdx.x % sm90::kWarpgroup, lane = thread % kWarp;
  const int64_t tile = (b * s.heads + n) * p.q_tiles + m;
  const float4* sums =
      reinterpret_cast<const float4*>(p.dq_sums + (tile * 2 + half) * kHalf) +
      thread;
  const float scale = s.scale;
  auto* to = reinterpret_cast<uint32_t*>(
      staging + (thread / kWarp * 16 + lane / 4) * kRow + lane % 4 * 2 +
      half * (kDim == 128 ? 64 : 64 * kRow));
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float4 x = sums[j * sm90::kWarpgroup];
    to[j * 4] = PackBfloat16(scale * x.x, scale * x.y);
    to[j * 4 + 4 * kRow] = PackBfloat16(scale * x.z, scale * x.w);
  }
  __syncthreads();
  constexpr int kChunks = kDim / 8;
  for (int r = threadIdx.x / kChunks; r < kRows; r += 256 / kChunks) {
    const int i = m * kRows + r;
    if (i < sample.q_begin || i >= sample.q_end) continue;
    const int64_t row = sample.first_query + i;
    const int column = threadIdx.x % kChunks * 8;
    const __nv_bfloat16* from = staging + r * kRow;
    uint4 values = *reinterpret_cast<const uint4*>(from + column);
    if (p.args.cos != nullptr) {
      values = TurnBack<kDim>(p.args, i - sample.q_begin, column, from + column,
                              from + (column ^ (kDim / 2)));
    }
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(p.args.dq) +
                              row * p.args.dq_stride + n * kDim + column) =
        values;
  }
}

struct Workspace {
  int64_t nlse, delta, turns, ticket, bytes;  // offsets; dq_sums is first
};
Workspace WorkspaceOf(const AttentionShape& s) {
  const int64_t rows = s.head_dim == 64 ? kQueries<64> : kQueries<128>;
  const int64_t tiles = s.batch * s.heads * CeilDiv(s.seq_q, rows);
  Workspace w;
  w.nlse = tiles * 2 * kHalf * 4;
  w.delta = w.nlse + tiles * rows * 4;
  w.turns = w.delta + tiles * rows * 4;
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
  Params p{
      .q = map(args.q, s.heads, s.seq_q, args.q_stride, kQueries<kDim>),
      .k = map(args.k, s.kv_heads, s.seq_k, args.kv_stride, kKeys),
      .v = map(args.v, s.kv_heads, s.seq_k, args.kv_stride, kKeys),
      .dout = map(args.dout, s.heads, s.seq_q, s.heads * kDim, kQueries<kDim>),
      .args = args,
      .dq_sums = reinterpret_cast<float*>(base),
      .nlse = reinterpret_cast<float*>(base + w.nlse),
      .delta = reinterpret_cast<float*>(base + w.delta),
      .turns = reinterpret_cast<int*>(base + w.turns),
      .ticket = reinterpret_cast<int*>(base + w.ticket),
      .q_tiles = static_cast<int>(CeilDiv(s.seq_q, kQueries<kDim>)),
      .k_tiles = static_cast<int>(CeilDiv(s.seq_k, kKeys)),
      .ratio = static_cast<int>(s.heads / s.kv_heads),
      .heads_at_once = heads_at_once,
      .scale = static_cast<float>(s.scale)};
  const int64_t tickets = s.batch * s.kv_heads * p.k_tiles;
  const dim3 tiles(s.heads, p.q_tiles, s.batch);
  const cudaStream_t raw = RawStream(stream);
  [[maybe_unused]] static const bool once = [] {
    MIMO_CUDA_CHECK(cudaFuncSetAttribute(
        TilesKernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
        sizeof(Shared<kDim>)));
    return true;
  }();
  PrepareKernel<kDim><<<tiles, 256, 0, raw>>>(p);
  const auto launch = [&](auto kernel, dim3 blocks, int threads, int shared) {
    cudaLaunchAttribute early{
        .id = cudaLaunchAttributeProgrammaticStreamSerialization};
    early.val.programmaticStreamSerializationAllowed = 1;
    const cudaLaunchConfig_t config{
        .gridDim = blocks,
        .blockDim = dim3(threads),
        .dynamicSmemBytes = static_cast<size_t>(shared),
        .stream = raw,
        .attrs = &early,
        .numAttrs = 1};
    MIMO_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, p));
  };
  launch(TilesKernel<kDim>, dim3(std::min<int64_t>(tickets, NumSms())),
         kThreads, sizeof(Shared<kDim>));
  launch(FinishKernel<kDim>, tiles, 256, 0);
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
  CHECK(AttentionBackwardSm90Takes(args));
  const AttentionShape& s = args.shape;
  // Measured: with the causal mask two tiles of keys side by side for every
  // multiprocessor (four if items are longer for several heads), without as
  // many groups as L2 holds of q, dout and dQ's sums.
  const int64_t k_tiles = CeilDiv(s.seq_k, kKeys);
  const int64_t head_bytes = s.seq_q * s.head_dim * 8;
  const int64_t groups =
      s.causal ? (s.heads > s.kv_heads ? 4 : 2) * NumSms() / k_tiles
               : std::max<int64_t>(NumSms() / k_tiles, (24 << 20) / head_bytes);
  const int heads_at_once = std::max<int64_t>(1, groups);
  if (s.head_dim == 64) {
    Launch<64>(args, stream, heads_at_once);
  } else {
    Launch<128>(args, stream, heads_at_once);
  }
}

}  // namespace mimo::kernels
