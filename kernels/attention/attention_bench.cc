// GFLOP/s of attention by the flops of attention.h (causal counts half), and
// their share of the sgemm peak measured in the same run (sgemm%).
#include <cmath>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/attention/attention.h"
#include "kernels/gemm/gemm_floor.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

struct Shape {
  const char* name;
  int64_t batch, seq, heads, kv_heads, head_dim;
  bool causal;
};

constexpr Shape kShapes[] = {
    {"text_16x80", 16, 80, 4, 4, 32, true},
    {"text_64x40", 64, 40, 4, 4, 32, true},
    {"text_gqa_32x64", 32, 64, 4, 2, 32, true},
    {"image_64x17", 64, 17, 4, 4, 32, false},
    {"image_4x577", 4, 577, 16, 16, 64, false},
    {"long_2048_d64", 1, 2048, 8, 8, 64, true},
    {"long_2048_d128", 1, 2048, 8, 8, 128, true},
};

void BenchAttention(benchmark::State& state, const Shape& s, bool backward) {
  const int64_t q_size = s.batch * s.seq * s.heads * s.head_dim;
  const int64_t stride = (s.heads + 2 * s.kv_heads) * s.head_dim;
  const int64_t k = s.heads * s.head_dim, v = k + s.kv_heads * s.head_dim;
  const std::vector<float> qkv =
      RandomVector<float>(s.batch * s.seq * stride, 1);
  const std::vector<float> dout = RandomVector<float>(q_size, 2);
  std::vector<float> out(q_size), lse(s.batch * s.heads * s.seq);
  std::vector<float> dqkv(qkv.size());
  const AttentionShape shape = {.batch = s.batch,
                                .seq_q = s.seq,
                                .seq_k = s.seq,
                                .heads = s.heads,
                                .kv_heads = s.kv_heads,
                                .head_dim = s.head_dim,
                                .causal = s.causal,
                                .scale = 1 / std::sqrt(s.head_dim)};
  const AttentionForwardArgs forward = {.shape = shape,
                                        .q = qkv.data(),
                                        .k = qkv.data() + k,
                                        .v = qkv.data() + v,
                                        .q_stride = stride,
                                        .kv_stride = stride,
                                        .out = out.data(),
                                        .lse = lse.data(),
                                        .dtype = DType::kFloat32};
  AttentionForward(forward, {});
  for (auto _ : state) {
    if (!backward) {
      AttentionForward(forward, {});
      continue;
    }
    AttentionBackward({.shape = shape,
                       .q = qkv.data(),
                       .k = qkv.data() + k,
                       .v = qkv.data() + v,
                       .q_stride = stride,
                       .kv_stride = stride,
                       .out = out.data(),
                       .lse = lse.data(),
                       .dout = dout.data(),
                       .dq = dqkv.data(),
                       .dk = dqkv.data() + k,
                       .dv = dqkv.data() + v,
                       .dq_stride = stride,
                       .dkv_stride = stride,
                       .dtype = DType::kFloat32},
                      {});
  }
  ReportFlops(state, (backward ? 10.0 : 4.0) * s.batch * s.heads * s.seq *
                         s.seq * s.head_dim / (s.causal ? 2 : 1));
}

const bool registered = [] {
  for (const Shape& s : kShapes) {
    for (bool backward : {false, true}) {
      benchmark::RegisterBenchmark(
          (std::string(s.name) + (backward ? "/backward" : "/forward")).c_str(),
          [&s, backward](benchmark::State& state) {
            BenchAttention(state, s, backward);
          })
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
  return true;
}();

}  // namespace
}  // namespace mimo::kernels
