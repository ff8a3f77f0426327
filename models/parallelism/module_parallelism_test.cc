// The rules of one module, with the numbers that Megatron's tests pin.
#include "models/parallelism/module_parallelism.h"

#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mimo/config/fields.h"

namespace mimo {
namespace {

using Config = ModuleParallelismConfig;
using ::testing::HasSubstr;

TEST(ModuleParallelism, FinalizeComputesDp) {
  Config m{.tensor_model_parallel_size = 2, .pipeline_model_parallel_size = 2};
  ASSERT_TRUE(m.Finalize(16).ok());
  EXPECT_EQ(m.data_parallel_size, 4);
  EXPECT_EQ(*m.TotalRanks(), 16);
  EXPECT_EQ(*m.ExpertDataParallelSize(), 8);
  const Config before = m;
  ASSERT_TRUE(m.Finalize(16).ok());
  EXPECT_EQ(m, before);
}

TEST(ModuleParallelism, RankAlgebraExcludesExpertParallelism) {
  Config m{.tensor_model_parallel_size = 2,
           .pipeline_model_parallel_size = 2,
           .context_parallel_size = 2,
           .expert_model_parallel_size = 2,
           .expert_tensor_parallel_size = 4,
           .data_parallel_size = 4};
  ASSERT_TRUE(m.Finalize(std::nullopt).ok());
  EXPECT_EQ(m.DenseModelParallelSize(), 8);
  EXPECT_EQ(*m.TotalRanks(), 32);
  EXPECT_EQ(*m.ExpertDataParallelSize(), 2);
}

TEST(ModuleParallelism, TotalRanksNeedDp) {
  Config m{.tensor_model_parallel_size = 2, .pipeline_model_parallel_size = 2};
  EXPECT_THAT(
      m.TotalRanks().status().message(),
      HasSubstr("data_parallel_size must be set before accessing total_ranks"));
  EXPECT_THAT(m.ExpertDataParallelSize().status().message(),
              HasSubstr("before accessing expert_data_parallel_size"));
  m.data_parallel_size = 4;
  EXPECT_EQ(*m.TotalRanks(), 16);
}

TEST(ModuleParallelism, ExpertDataParallelSizeMustBeWhole) {
  const Config m{.expert_model_parallel_size = 3, .data_parallel_size = 4};
  EXPECT_THAT(
      m.ExpertDataParallelSize().status().message(),
      HasSubstr("total_ranks must be divisible by expert_tensor_parallel_size "
                "* expert_model_parallel_size * pipeline_model_parallel_size"));
}

TEST(ModuleParallelism, RefusesByTheRuleThatIsBroken) {
  constexpr char kNeedsWorld[] =
      "world_size must be provided to compute data_parallel_size";
  struct Case {
    Config config;
    std::optional<int> world;
    std::string want;
  };
  std::vector<Case> cases = {
      {{.rank_offset = -1}, 4, "rank_offset must be non-negative"},
      {{.sequence_parallel = true},
       4,
       "sequence_parallel: true, wanted false with tensor_model_parallel_size "
       "1"},
      {{}, std::nullopt, kNeedsWorld},
      {{}, 0, kNeedsWorld},
      {{}, -4, kNeedsWorld},
      {{.tensor_model_parallel_size = 3, .pipeline_model_parallel_size = 2},
       10,
       "world_size (10) is not divisible by total_model_parallel_size (6)"},
      {{.tensor_model_parallel_size = 2,
        .expert_tensor_parallel_size = 3,
        .data_parallel_size = 1},
       std::nullopt,
       "TP * CP * DP must be divisible by expert_tensor_parallel_size * "
       "expert_model_parallel_size, found TP=2, CP=1, DP=1, ETP=3, EP=1"},
      // Sizes come before DP, and DP before the experts.
      {{.tensor_model_parallel_size = 0, .rank_offset = -1},
       std::nullopt,
       "tensor_model_parallel_size must be positive"},
      {{.expert_model_parallel_size = 3}, std::nullopt, kNeedsWorld},
      {{.expert_model_parallel_size = 3}, 4, "TP * CP * DP"},
  };
  const std::pair<const char*, int Config::*> sizes[] = {
      {"tensor_model_parallel_size", &Config::tensor_model_parallel_size},
      {"pipeline_model_parallel_size", &Config::pipeline_model_parallel_size},
      {"context_parallel_size", &Config::context_parallel_size},
      {"expert_model_parallel_size", &Config::expert_model_parallel_size},
      {"expert_tensor_parallel_size", &Config::expert_tensor_parallel_size}};
  for (int bad : {0, -1, std::numeric_limits<int>::min()}) {
    for (const auto& [name, size] : sizes) {
      Config m;
      m.*size = bad;
      cases.push_back(
          {m, 4,
           absl::StrCat(name, ": ", bad, ", ", name, " must be positive")});
    }
    cases.push_back({{.data_parallel_size = bad},
                     4,
                     absl::StrCat("data_parallel_size: ", bad,
                                  ", data_parallel_size must be positive")});
  }
  for (const Case& c : cases) {
    Config m = c.config;
    const absl::Status status = m.Finalize(c.world);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.want;
    EXPECT_THAT(status.message(), HasSubstr(c.want));
    EXPECT_EQ(m, c.config) << "changed by " << c.want;
  }
}

TEST(ModuleParallelism, ProductsDoNotOverflow) {
  constexpr int kMax = std::numeric_limits<int>::max();
  Config m{.tensor_model_parallel_size = kMax,
           .pipeline_model_parallel_size = kMax,
           .context_parallel_size = kMax,
           .data_parallel_size = kMax};
  EXPECT_EQ(*m.TotalRanks(), int64_t{1} << 62);
  m.data_parallel_size.reset();
  EXPECT_THAT(m.Finalize(kMax).message(), HasSubstr("is not divisible by"));
}

TEST(ModuleParallelism, PrintsAndReadsBack) {
  Config m{.tensor_model_parallel_size = 2,
           .sequence_parallel = true,
           .pipeline_model_parallel_size = 3,
           .context_parallel_size = 4,
           .expert_model_parallel_size = 5,
           .expert_tensor_parallel_size = 6,
           .rank_offset = 8};
  EXPECT_EQ(absl::StrCat(m), "TP2+SP CP4 PP3 DP? EP5 ETP6 @8");
  for (std::optional<int> dp : {std::optional<int>(), std::optional<int>(7)}) {
    m.data_parallel_size = dp;
    const auto node = ParseYaml(ToYaml(m), "m.yaml");
    Config back{.data_parallel_size = 9};
    ASSERT_TRUE(node.ok() && FromYaml(*node, back).ok());
    EXPECT_EQ(back, m);
  }
}

}  // namespace
}  // namespace mimo
