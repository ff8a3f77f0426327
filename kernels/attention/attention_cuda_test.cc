// Every way of attention.cu on every class of shapes, against float64.
#include "kernels/attention/attention_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <initializer_list>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/attention/attention_problem.h"
#include "kernels/base/cuda_check.h"
#include "kernels/base/device.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

constexpr Backend kBf16 = {Device::kCuda, DType::kBFloat16};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (int64_t s : {1, 17, 64, 65, 129, 577}) {
    for (int64_t d : {16, 40, 64, 80, 128}) {
      for (bool causal : {false, true})
        cases.push_back({2, s, s, 4, s % 2 == 0 ? 4 : 2, d, causal});
    }
  }
  for (int64_t d : {40, 64, 128}) {
    for (bool causal : {false, true}) {
      cases.push_back({3, 140, 140, 4, 2, d, causal, {1, 130, 0}});
      cases.push_back({3, 256, 256, 2, 2, d, causal, {256, 64, 255}});
      cases.push_back(
          {4, 200, 200, 4, 2, d, causal, {}, 0, {0, 5, 5, 205, 300}});
      cases.push_back({2, 300, 300, 2, 1, d, causal, {}, 0, {0, 300, 428}});
    }
    cases.push_back({2, 1, 77, 4, 2, d, true});
    cases.push_back({1, 70, 200, 4, 2, d, true});
    cases.push_back({1, 200, 70, 4, 2, d, true});  // some see no key
    cases.push_back({2, 130, 300, 4, 2, d, false, {129, 300}});
    cases.push_back({2, 1, 300, 4, 2, d, true, {}, 320});
    cases.push_back({2, 100, 300, 4, 2, d, true, {}, 320});
    cases.push_back({2, 100, 300, 4, 2, d, false, {290, 0}, 320});
  }
  // A key more than whole tiles, and so of queries.
  for (int64_t queries : {1, 100, 193, 385}) {
    for (int64_t keys : {1, 97, 193, 385})
      cases.push_back({2, queries, keys, 4, 2, 64, false, {}, 400});
  }
  for (Case& c : cases) c.gap = 8;
  return cases;
}

// cuDNN compiles for a second for every shape and direction.
std::vector<Case> CasesOf(AttentionWay way) {
  if (way == AttentionWay::kSm90 || way == AttentionWay::kSimple)
    return AllCases();
  std::vector<Case> cases = {
      {2, 65, 65, 4, 2, 40, true},
      {2, 577, 577, 4, 4, 64, false},
      {2, 129, 129, 4, 2, 128, true},
      {3, 140, 140, 4, 2, 64, true, {1, 130, 140}},
      {3, 140, 140, 4, 2, 128, false, {1, 130, 0}},
      {2, 130, 300, 4, 2, 64, false, {129, 300}},
      {1, 70, 200, 4, 2, 128, false},
      {2, 100, 300, 4, 2, 64, false, {290, 300}, 320},
  };
  for (Case& c : cases) c.gap = 8;
  return cases;
}

// Runs one way where it takes the arguments; what it does not take stays empty.
struct Way {
  Functions functions() {
    return {
        .forward =
            [this](const AttentionForwardArgs& args, Stream stream) {
              takes_forward = Takes(way, args);
              AttentionForwardBy(takes_forward ? way : AttentionWay::kSimple,
                                 args, stream);
            },
        .backward =
            [this](const AttentionBackwardArgs& args, Stream stream) {
              takes_backward = Takes(way, args);
              AttentionBackwardBy(takes_backward ? way : AttentionWay::kSimple,
                                  args, stream);
            },
        .workspace_bytes =
            [this](const AttentionShape& shape, DType, Device) {
              return std::max(AttentionBackwardWorkspaceBytesBy(way, shape),
                              AttentionBackwardWorkspaceBytesBy(
                                  AttentionWay::kSimple, shape));
            },
    };
  }

  AttentionWay way;
  bool takes_forward = false, takes_backward = false;
};

class AttentionWayTest : public testing::TestWithParam<AttentionWay> {
 protected:
  void SetUp() override {
    const absl::Status status = CheckDevice(Device::kCuda);
    if (!status.ok()) GTEST_SKIP() << status.message();
  }
};
INSTANTIATE_TEST_SUITE_P(By, AttentionWayTest,
                         testing::ValuesIn(kAttentionWays),
                         [](const auto& info) {
                           return std::string(Name(info.param));
                         });

// Ours takes two head sizes, the simple kernel all; what cuDNN takes is its own
// to say.
bool MustTake(AttentionWay way, const Case& c) {
  if (way == AttentionWay::kSm90) return c.head_dim == 64 || c.head_dim == 128;
  return way == AttentionWay::kSimple;
}

// Runs the cases by a way: twice, for the same bits.
void ExpectNearFloat64(AttentionWay by, const std::vector<Case>& cases) {
  int forward = 0, backward = 0;
  for (const Case& c : cases) {
    const Problem p(c);
    Way way = {by};
    const Outputs got = Compute(kBf16, p, way.functions());
    forward += way.takes_forward;
    backward += way.takes_backward;
    if (MustTake(by, c)) {
      EXPECT_TRUE(way.takes_forward) << c;
      EXPECT_EQ(way.takes_backward, c.capacity == 0) << c;
    }
    if (!way.takes_forward && !way.takes_backward) continue;
    ExpectNear(kBf16, p, got, Compute(Oracle(), p));
    if (by == AttentionWay::kCudnnUnordered) continue;
    const Outputs again = Compute(kBf16, p, way.functions());
    EXPECT_EQ(got.out, again.out) << c;
    EXPECT_EQ(got.lse, again.lse) << c;
    EXPECT_EQ(got.dq, again.dq) << c;
    EXPECT_EQ(got.dkv, again.dkv) << c;
  }
  EXPECT_GT(forward, 0);
  EXPECT_GT(backward, 0);
  std::cout << Name(by) << " takes " << forward << " forward and " << backward
            << " backward of " << cases.size() << " cases\n";
}

TEST_P(AttentionWayTest, IsNearFloat64) {
  ExpectNearFloat64(GetParam(), CasesOf(GetParam()));
}

// Each kernel once, with few enough tiles for racecheck (docs/runbook.md).
TEST_P(AttentionWayTest, SmallIsNearFloat64) {
  std::vector<Case> cases = {
      {1, 129, 129, 2, 1, 64, true},
      {1, 129, 129, 2, 1, 128, true},
      {2, 100, 129, 2, 1, 64, false, {129, 0}},  // 128 queries at once
      {1, 193, 97, 2, 1, 64, false},             // a lone query and key
      {1, 1, 77, 2, 1, 64, true},
  };
  for (Case& c : cases) c.gap = 8;
  ExpectNearFloat64(GetParam(), cases);
}

// The way of each class of shapes that models have.
TEST(AttentionWays, AreChosenByShape) {
  if (const absl::Status status = CheckDevice(Device::kCuda); !status.ok())
    GTEST_SKIP() << status.message();
  constexpr DType kBf16 = DType::kBFloat16, kFloat = DType::kFloat32;
  constexpr AttentionWay kSm90 = AttentionWay::kSm90,
                         kCudnn = AttentionWay::kCudnn,
                         kSimple = AttentionWay::kSimple;
  const struct {
    const char* name;
    AttentionShape shape;  // batch, queries, keys, heads, key heads, head size
    DType dtype;
    AttentionWay way;
    bool packed = false, padded = false;
  } kClasses[] = {
      {"Llama", {2, 704, 704, 32, 32, 128, true}, kBf16, kSm90},
      {"grouped", {2, 512, 512, 32, 8, 128, true}, kBf16, kSm90},
      {"packed", {2, 512, 512, 32, 8, 128, true}, kBf16, kSm90, true},
      {"CLIP", {2, 577, 577, 16, 16, 64, false}, kBf16, kSm90},
      {"padded", {2, 500, 500, 8, 8, 64, false}, kBf16, kSm90, false, true},
      {"decoding", {2, 1, 300, 32, 8, 128, true}, kBf16, kSm90},
      {"head size 72", {2, 729, 729, 16, 16, 72, false}, kBf16, kCudnn},
      {"72 packed", {2, 729, 729, 16, 16, 72, false}, kBf16, kSimple, true},
      {"72 decoding", {2, 1, 300, 16, 16, 72, true}, kBf16, kSimple},
      {"head size 20", {2, 64, 64, 4, 4, 20, true}, kBf16, kSimple},
      {"float32", {2, 704, 704, 32, 32, 128, true}, kFloat, kSimple},
  };
  for (const auto& c : kClasses) {
    AttentionShape shape = c.shape;
    shape.scale = 1;
    const int32_t list[] = {0};  // not read
    const int32_t* const cu_seqlens = c.packed ? list : nullptr;
    const int32_t* const key_lengths = c.padded ? list : nullptr;
    const int64_t stride = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    EXPECT_EQ(Name(WayOf(AttentionForwardArgs{.shape = shape,
                                              .q_stride = stride,
                                              .kv_stride = stride,
                                              .key_lengths = key_lengths,
                                              .cu_seqlens = cu_seqlens,
                                              .dtype = c.dtype})),
              Name(c.way))
        << c.name;
    EXPECT_EQ(Name(WayOf(AttentionBackwardArgs{.shape = shape,
                                               .q_stride = stride,
                                               .kv_stride = stride,
                                               .key_lengths = key_lengths,
                                               .cu_seqlens = cu_seqlens,
                                               .dq_stride = stride,
                                               .dkv_stride = stride,
                                               .dtype = c.dtype})),
              Name(c.way))
        << c.name;
  }
}

// Runs `op`, which may make its plans, and again as a graph; between the two,
// `outputs` of so many bytes are poisoned.
void RunCaptured(Stream stream,
                 std::initializer_list<std::pair<void*, int64_t>> outputs,
                 absl::FunctionRef<void()> op) {
  op();
  for (const auto& [output, bytes] : outputs)
    FillBytes(output, 0xff, bytes, stream);
  const auto raw = static_cast<cudaStream_t>(stream.raw);
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  MIMO_CUDA_CHECK(
      cudaStreamBeginCapture(raw, cudaStreamCaptureModeThreadLocal));
  op();
  MIMO_CUDA_CHECK(cudaStreamEndCapture(raw, &graph));
  MIMO_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  MIMO_CUDA_CHECK(cudaGraphLaunch(executable, raw));
  Synchronize(stream);
  MIMO_CUDA_CHECK(cudaGraphExecDestroy(executable));
  MIMO_CUDA_CHECK(cudaGraphDestroy(graph));
}

TEST_P(AttentionWayTest, CanBeCaptured) {
  const Problem p({.batch = 2,
                   .seq_q = 129,
                   .seq_k = 129,
                   .heads = 4,
                   .kv_heads = 2,
                   .head_dim = 128,
                   .causal = true,
                   .gap = 8});
  Way way = {GetParam()};
  Functions functions = way.functions();
  const auto forward = functions.forward;
  const auto backward = functions.backward;
  functions.forward = [&](const AttentionForwardArgs& args, Stream stream) {
    RunCaptured(stream,
                {{args.out, 2 * p.dout.size()},
                 {args.lse, sizeof(float) * p.c.batch * p.c.heads * p.c.seq_q}},
                [&] { forward(args, stream); });
  };
  functions.backward = [&](const AttentionBackwardArgs& args, Stream stream) {
    RunCaptured(stream, {{args.dq, 2 * p.q.size()}, {args.dk, 2 * p.kv.size()}},
                [&] { backward(args, stream); });
  };
  ExpectNear(kBf16, p, Compute(kBf16, p, functions), Compute(Oracle(), p));
  EXPECT_TRUE(way.takes_forward && way.takes_backward);
}

}  // namespace
}  // namespace mimo::kernels
