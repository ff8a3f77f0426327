// TFLOP/s of every way of attention.cu, by the flops of attention.h, and their
// share of the 8192 x 8192 x 8192 product of the same run (floor%); bfloat16,
// q, k and v in one fused row.
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/gemm/gemm_floor.h"
#include "kernels/testing/cuda_bench.h"

namespace mimo::kernels {
namespace {

constexpr DType kBf16 = DType::kBFloat16;

struct Shape {
  const char* name;
  int64_t batch, seq, heads, kv_heads, head_dim;
  bool causal;
  int64_t queries = 0;  // the last ones; 0: all
};

constexpr Shape kShapes[] = {
    {"b4_h32_s2048_d128", 4, 2048, 32, 32, 128, true},
    {"b2_h32_s4096_d128", 2, 4096, 32, 32, 128, true},
    {"b1_h32_s8192_d128", 1, 8192, 32, 32, 128, true},
    {"b1_h32_s16384_d128", 1, 16384, 32, 32, 128, true},
    {"b2_h32_kv8_s4096_d128", 2, 4096, 32, 8, 128, true},
    {"b8_h32_s704_d128", 8, 704, 32, 32, 128, true},
    {"b32_h16_s577_d64_full", 32, 577, 16, 16, 64, false},
    {"b8_h16_s729_d72_full", 8, 729, 16, 16, 72, false},
    {"b64_h8_s40_d64", 64, 40, 8, 8, 64, true},
    {"b1_h32_s1024_d128_1", 1, 1024, 32, 32, 128, true, 1},
    {"b8_h32_kv8_s2048_d128_1", 8, 2048, 32, 8, 128, true, 1},
    {"b1_h32_s1024_d128_16", 1, 1024, 32, 32, 128, true, 16},
};

void Bench(benchmark::State& state, const Shape& c, AttentionWay way,
           bool backward) {
  CudaBench gpu(state);
  if (!gpu) return;
  const double floor = CudaMatmulFlopsPerSecond(gpu);
  const int64_t tokens = c.batch * c.seq, width = c.heads * c.head_dim;
  const int64_t stride = width + 2 * c.kv_heads * c.head_dim;
  const AttentionShape shape = {.batch = c.batch,
                                .seq_q = c.queries != 0 ? c.queries : c.seq,
                                .seq_k = c.seq,
                                .heads = c.heads,
                                .kv_heads = c.kv_heads,
                                .head_dim = c.head_dim,
                                .causal = c.causal,
                                .scale = 1 / std::sqrt(c.head_dim)};
  const auto k = [&](void* rows) {
    return static_cast<char*>(rows) + 2 * width;
  };
  const auto v = [&](void* rows) {
    return k(rows) + 2 * c.kv_heads * c.head_dim;
  };
  void* const qkv = gpu.Random(kBf16, tokens * stride);
  const AttentionForwardArgs forward = {
      .shape = shape,
      .q = qkv,
      .k = k(qkv),
      .v = v(qkv),
      .q_stride = stride,
      .kv_stride = stride,
      .out = gpu.Allocate(2 * tokens * width),
      .lse = gpu.Allocate(4 * tokens * c.heads),
      .dtype = kBf16};
  const double flops = 4.0 * c.batch * c.heads * shape.seq_q * c.seq *
                       c.head_dim / (c.causal && c.queries == 0 ? 2 : 1);
  if (!backward) {
    if (!Takes(way, forward)) return state.SkipWithMessage("not taken");
    gpu.Run([&](Stream stream) { AttentionForwardBy(way, forward, stream); });
    return gpu.ReportFlops(flops, floor);
  }
  AttentionForward(forward, gpu.stream());
  void* const dqkv = gpu.Allocate(2 * tokens * stride);
  AttentionBackwardArgs args = {.shape = shape,
                                .q = qkv,
                                .k = k(qkv),
                                .v = v(qkv),
                                .q_stride = stride,
                                .kv_stride = stride,
                                .out = forward.out,
                                .lse = forward.lse,
                                .dout = gpu.Random(kBf16, tokens * width),
                                .dq = dqkv,
                                .dk = k(dqkv),
                                .dv = v(dqkv),
                                .dq_stride = stride,
                                .dkv_stride = stride,
                                .dtype = kBf16};
  if (!Takes(way, args)) return state.SkipWithMessage("not taken");
  args.workspace = gpu.Allocate(AttentionBackwardWorkspaceBytesBy(way, shape));
  gpu.Run([&](Stream stream) { AttentionBackwardBy(way, args, stream); });
  gpu.ReportFlops(2.5 * flops, floor);
}

const bool registered = [] {
  for (const Shape& shape : kShapes) {
    for (bool backward : {false, true}) {
      for (AttentionWay way : kAttentionWays) {
        if (backward ? shape.queries != 0
                     : way == AttentionWay::kCudnnUnordered) {
          continue;
        }
        benchmark::RegisterBenchmark(
            absl::StrCat("Cuda/", shape.name,
                         backward ? "/backward/" : "/forward/", Name(way))
                .c_str(),
            [&shape, backward, way](benchmark::State& state) {
              Bench(state, shape, way, backward);
            })
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace mimo::kernels
