// The Hopper instructions that attention is made of, one small function each:
// mbarriers, tensor copies (TMA), warpgroup matrix products (wgmma), named
// barriers and register reallocation. Names and semantics: PTX ISA 8.0 and up,
// sections "mbarrier", "cp.async.bulk.tensor", "wgmma", "setmaxnreg".
//
// A tile in shared memory is [columns/64][rows][64] bfloat16, every 128-byte
// row swizzled by TMA's 128-byte pattern (16-byte chunk c of row r lies at
// c ^ (r % 8)); it starts at a multiple of 1024 bytes. RowsDescriptor and
// ColumnsDescriptor describe it to wgmma.
#ifndef MIMO_KERNELS_ATTENTION_SM90_CUH_
#define MIMO_KERNELS_ATTENTION_SM90_CUH_

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "absl/log/check.h"
#include "kernels/base/cuda.cuh"

namespace mimo::kernels::sm90 {

inline constexpr int kWarpgroup = 128;  // threads

// ---- Host: tensor maps ------------------------------------------------------

// Describes a tensor to TMA, innermost dimension first: dims in elements,
// strides in bytes (multiples of 16) from dimension 1 on, box in elements.
// What a box reads outside the dims is zero, what it writes there is dropped.
// cuTensorMapEncodeTiled is asked of the runtime: no link to libcuda.
template <int kRank>
CUtensorMap MakeTensorMap(
    const void* base, const uint64_t (&dims)[kRank],
    const uint64_t (&strides)[kRank - 1], const uint32_t (&box)[kRank],
    CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                   const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                   const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                   CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    MIMO_CUDA_CHECK(cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    CHECK(found == cudaDriverEntryPointSuccess) << "no cuTensorMapEncodeTiled";
    return reinterpret_cast<Encode>(function);
  }();
  uint32_t steps[kRank];
  for (uint32_t& step : steps) step = 1;
  CUtensorMap map;
  const CUresult result = encode(
      &map, type, kRank, const_cast<void*>(base), dims, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS)
      << "cuTensorMapEncodeTiled: " << static_cast<int>(result);
  return map;
}

// ---- Shared memory and barriers --------------------------------------------

__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Orders this thread's ordinary shared-memory accesses before those of TMA and
// wgmma; then a barrier for the other threads'.
__device__ inline void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void BarrierInit(uint64_t* barrier, int arrivals) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(arrivals)
      : "memory");
}
// After the inits, before the block's __syncthreads().
__device__ inline void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void BarrierArrive(uint64_t* barrier) {
  asm volatile(
      "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier))
      : "memory");
}
// One arrival, and `bytes` more to be copied before the phase ends.
__device__ inline void BarrierExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
// Returns when the phase of this parity has ended; a fresh barrier is in phase
// 0, so waiting for parity 1 returns at once.
__device__ inline void BarrierWait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// Hardware barriers 1 to 15 (0 is __syncthreads'): `threads` is how many
// threads sync or arrive in all.
__device__ inline void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// By all warps of a warpgroup; the kernel needs __launch_bounds__(threads, 1).
template <int kRegisters>
__device__ inline void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- Tensor copies: by one thread -------------------------------------------

__device__ inline void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Coordinates in elements, innermost first; `barrier` counts the bytes.
__device__ inline void TmaLoad(void* to, const CUtensorMap* map,
                               uint64_t* barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx"
      "::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(SharedAddress(to)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y)
      : "memory");
}
__device__ inline void TmaLoad(void* to, const CUtensorMap* map,
                               uint64_t* barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx"
      "::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(SharedAddress(to)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ inline void TmaStoreCommit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Returns when at most kGroups groups of stores still read shared memory.
template <int kGroups>
__device__ inline void TmaStoreWait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}

// ---- Warpgroup matrix products ----------------------------------------------

__device__ inline uint64_t Descriptor(const void* tile, uint32_t leading,
                                      uint32_t stride) {
  return static_cast<uint64_t>((SharedAddress(tile) & 0x3ffff) >> 4) |
         static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | uint64_t{1} << 62;
}
// A tile whose columns are the summed dimension (K-major). The next 16 columns:
// + 2 inside 64 columns, + rows * 8 from one 64 to the next.
__device__ inline uint64_t RowsDescriptor(const void* tile) {
  return Descriptor(tile, 16, 1024);
}
// A tile of `rows` rows in all whose rows are the summed dimension (MN-major,
// the "transposed" operand). The next 16 rows: + 128.
__device__ inline uint64_t ColumnsDescriptor(const void* tile, int rows) {
  return Descriptor(tile, rows * 128, 1024);
}

// Before the first product of a sequence, and after its registers were touched.
__device__ inline void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Returns when at most kGroups committed groups still run.
template <int kGroups>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
// Keeps the compiler from moving uses of x across: right before the fence and
// right after the wait of an asynchronous product over x.
template <int kCount>
__device__ inline void Pin(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kCount>
__device__ inline void Pin(uint32_t (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

// Wgmma<kTransposeA, kTransposeB>(d, a, b, accumulate): d[64, N] = a[64, 16]
// b[16, N] (+ d if accumulate), N of 64, 96, 128 or 192, with d of N/2 float32
// sums of bfloat16 products. Lane l of warp w holds rows 16w + l/4 (and + 8):
// d[4i], d[4i+1] are columns 8i + 2(l%4) and + 1 of the first row, d[4i+2],
// d[4i+3] of the second. kTransposeA, kTransposeB: 0 for a RowsDescriptor, 1
// for a ColumnsDescriptor. Wgmma<kTransposeB>(d, a, b, accumulate) takes a from
// registers: a[0..3] are the bfloat16 pairs of (row, columns 2(l%4)), (row + 8,
// the same), (row, 8 + 2(l%4)), (row + 8, the same): the layout of d, packed.
#define MIMO_TEN(t)                                                     \
  "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t \
  "7,%" #t "8,%" #t "9"
#define MIMO_F8(i)                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), \
      "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define MIMO_F32(i) MIMO_F8(i), MIMO_F8(i + 8), MIMO_F8(i + 16), MIMO_F8(i + 24)
#define MIMO_F48 MIMO_F32(0), MIMO_F8(32), MIMO_F8(40)
#define MIMO_F64 MIMO_F32(0), MIMO_F32(32)
#define MIMO_F96 MIMO_F64, MIMO_F32(64)
#define MIMO_NAMES30 MIMO_TEN() "," MIMO_TEN(1) "," MIMO_TEN(2)
#define MIMO_NAMES40 MIMO_NAMES30 "," MIMO_TEN(3)
#define MIMO_NAMES60 MIMO_NAMES40 "," MIMO_TEN(4) "," MIMO_TEN(5)
#define MIMO_NAMES90 \
  MIMO_NAMES60 "," MIMO_TEN(6) "," MIMO_TEN(7) "," MIMO_TEN(8)

// n: columns; count: n / 2; p0..p6 count the operands after the sums.
#define MIMO_WGMMA(n, count, names, sums, p0, p1, p2, p3, p4, p5, p6)      \
  template <int kTransposeA, int kTransposeB>                              \
  __device__ inline void Wgmma(float(&d)[count], uint64_t a, uint64_t b,   \
                               bool accumulate) {                          \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #p2                     \
                 ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #n                    \
                 "k16.f32.bf16.bf16 {" names "}, %" #p0 ", %" #p1          \
                 ", p, 1, 1, %" #p3 ", %" #p4 ";}\n"                       \
                 : sums                                                    \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)),      \
                   "n"(kTransposeA), "n"(kTransposeB));                    \
  }                                                                        \
  template <int kTransposeB>                                               \
  __device__ inline void Wgmma(float(&d)[count], const uint32_t* a,        \
                               uint64_t b, bool accumulate) {              \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #p5                     \
                 ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #n                    \
                 "k16.f32.bf16.bf16 {" names "}, {%" #p0 ",%" #p1 ",%" #p2 \
                 ",%" #p3 "}, %" #p4 ", p, 1, 1, %" #p6 ";}\n"             \
                 : sums                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),     \
                   "r"(static_cast<int>(accumulate)), "n"(kTransposeB));   \
  }

MIMO_WGMMA(64, 32, MIMO_NAMES30 ",%30,%31", MIMO_F32(0), 32, 33, 34, 35, 36, 37,
           38)
MIMO_WGMMA(96, 48, MIMO_NAMES40 ",%40,%41,%42,%43,%44,%45,%46,%47", MIMO_F48,
           48, 49, 50, 51, 52, 53, 54)
MIMO_WGMMA(128, 64, MIMO_NAMES60 ",%60,%61,%62,%63", MIMO_F64, 64, 65, 66, 67,
           68, 69, 70)
MIMO_WGMMA(192, 96, MIMO_NAMES90 ",%90,%91,%92,%93,%94,%95", MIMO_F96, 96, 97,
           98, 99, 100, 101, 102)

#undef MIMO_WGMMA
#undef MIMO_NAMES90
#undef MIMO_NAMES60
#undef MIMO_NAMES40
#undef MIMO_NAMES30
#undef MIMO_F96
#undef MIMO_F64
#undef MIMO_F48
#undef MIMO_F32
#undef MIMO_F8
#undef MIMO_TEN

__device__ inline uint32_t PackBfloat16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

}  // namespace mimo::kernels::sm90

#endif  // MIMO_KERNELS_ATTENTION_SM90_CUH_
