// Every way of attention.cu on every class of shapes, against float64.
#include "kernels/attention/attention_cuda.h"

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/attention/attention_problem.h"
#include "kernels/base/device.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

constexpr Backend kBf16 = {Device::kCuda, DType::kBFloat16};

std::vector<Case> Cases() {
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
                         testing::Values(AttentionWay::kCudnn,
                                         AttentionWay::kCudnnUnordered,
                                         AttentionWay::kSimple),
                         [](const auto& info) {
                           return std::string(Name(info.param));
                         });

TEST_P(AttentionWayTest, IsNearFloat64) {
  int cases = 0, forward = 0, backward = 0;
  for (const Case& c : Cases()) {
    const Problem p(c);
    Way way = {GetParam()};
    const Outputs got = Compute(kBf16, p, way.functions());
    ++cases;
    forward += way.takes_forward;
    backward += way.takes_backward;
    if (!way.takes_forward && !way.takes_backward) continue;
    ExpectNear(kBf16, p, got, Compute(Oracle(), p));
    if (GetParam() == AttentionWay::kCudnnUnordered) continue;
    const Outputs again = Compute(kBf16, p, way.functions());
    EXPECT_EQ(got.out, again.out) << c;
    EXPECT_EQ(got.lse, again.lse) << c;
    EXPECT_EQ(got.dq, again.dq) << c;
    EXPECT_EQ(got.dkv, again.dkv) << c;
  }
  std::cout << Name(GetParam()) << " takes " << forward << " forward and "
            << backward << " backward of " << cases << " cases\n";
}

}  // namespace
}  // namespace mimo::kernels
