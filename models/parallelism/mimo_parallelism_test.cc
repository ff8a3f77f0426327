// The rules between modules: each by its words, with the numbers that
// Megatron's tests and run scripts pin.
#include "models/parallelism/mimo_parallelism.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using Module = ModuleParallelismConfig;
using Modules = std::vector<std::pair<std::string, Module>>;

Module Sizes(int tp, int pp, std::optional<int> dp, int offset = 0) {
  return {.tensor_model_parallel_size = tp,
          .pipeline_model_parallel_size = pp,
          .data_parallel_size = dp,
          .rank_offset = offset};
}
Module WithCp(Module m, int cp) {
  m.context_parallel_size = cp;
  return m;
}
Module WithExperts(Module m, int ep, int etp) {
  m.expert_model_parallel_size = ep;
  m.expert_tensor_parallel_size = etp;
  return m;
}

MimoParallelismConfig Config(DeploymentMode mode, Modules modules) {
  return {.deployment_mode = mode, .module_parallelisms = std::move(modules)};
}
MimoParallelismConfig Heterogeneous(Modules modules) {
  return Config(DeploymentMode::kHeterogeneous, std::move(modules));
}
MimoParallelismConfig Colocated(Modules modules) {
  return Config(DeploymentMode::kColocated, std::move(modules));
}
MimoParallelismConfig Homogeneous(Modules modules) {
  return Config(DeploymentMode::kHomogeneous, std::move(modules));
}
MimoParallelismConfig Strict(MimoParallelismConfig config) {
  config.strict_megatron_compat = true;
  return config;
}
MimoParallelismConfig AllowIdle(MimoParallelismConfig config) {
  config.allow_idle_ranks = true;
  return config;
}

void ExpectAccepted(MimoParallelismConfig config, int world) {
  const absl::Status status = config.Finalize(world);
  EXPECT_TRUE(status.ok()) << status << "\n" << ToYaml(config);
  const MimoParallelismConfig once = config;
  EXPECT_TRUE(config.Finalize(world).ok());
  EXPECT_EQ(config, once);
}
void ExpectRefused(const MimoParallelismConfig& config, int world,
                   const std::string& want) {
  MimoParallelismConfig copy = config;
  const absl::Status status = copy.Finalize(world);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << want;
  EXPECT_THAT(status.message(), AllOf(StartsWith("modules"), HasSubstr(want)));
  EXPECT_EQ(copy, config) << "changed by " << want;
}

TEST(MimoParallelism, MissingLanguageModule) {
  ExpectRefused(Heterogeneous({{"images", Sizes(1, 1, 1)},
                               {"audios", Sizes(1, 1, 1, 1)}}),
                2,
                "Language module 'language' must be in module_parallelisms, "
                "found [images, audios]");
  ExpectRefused(Homogeneous({}), 1, "found []");
  auto renamed = Heterogeneous({{"llm", Sizes(1, 1, 1)}});
  ExpectRefused(renamed, 1, "Language module 'language'");
  renamed.llm_module_name = "llm";
  ExpectAccepted(renamed, 1);
}

TEST(MimoParallelism, ModuleGivenTwice) {
  ExpectRefused(Heterogeneous({{"language", Sizes(1, 1, 1)},
                               {"language", Sizes(1, 1, 1, 1)}}),
                2, "modules.language: given twice");
}

TEST(MimoParallelism, UnsetDpComesFirstAndNamesTheModule) {
  // language has a fault of its own, which is found later.
  ExpectRefused(Heterogeneous({{"language", Sizes(0, 1, 4)},
                               {"images", Sizes(1, 1, std::nullopt, 4)}}),
                8,
                "data_parallel_size must be set for module 'images' in "
                "heterogeneous deployment");
}

TEST(MimoParallelism, ModuleFaultsNameTheModule) {
  for (auto mode : {DeploymentMode::kHomogeneous, DeploymentMode::kColocated,
                    DeploymentMode::kHeterogeneous}) {
    ExpectRefused(Config(mode, {{"language", Sizes(1, 1, 4)},
                                {"images", Sizes(1, -2, 4, 4)}}),
                  8,
                  "modules.images.pipeline_model_parallel_size: -2, "
                  "pipeline_model_parallel_size must be positive");
  }
  ExpectRefused(
      Colocated({{"language", Sizes(1, 1, 10)},
                 {"images", Sizes(3, 2, std::nullopt)}}),
      10, "world_size (10) is not divisible by total_model_parallel_size (6)");
  ExpectRefused(Colocated({{"language", Sizes(1, 1, std::nullopt)}}), 0,
                "world_size must be provided to compute data_parallel_size");
  ExpectRefused(
      Heterogeneous({{"language", WithExperts(Sizes(2, 1, 1), 1, 3)}}), 2,
      "TP * CP * DP must be divisible by");
}

TEST(MimoParallelism, NamesSpansAndWorldSize) {
  auto config = Heterogeneous(
      {{"vision", Sizes(2, 1, 2)}, {"language", Sizes(2, 1, 2, 4)}});
  EXPECT_EQ(*config.TotalWorldSize(), 8);
  EXPECT_EQ(*config.Span("language"), (RankSpan{4, 8}));
  EXPECT_EQ(config.Span("audios").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(config.ModuleNames(),
            (std::vector<std::string>{"vision", "language"}));
  EXPECT_EQ(config.Find("vision")->tensor_model_parallel_size, 2);
  EXPECT_EQ(config.Find("audios"), nullptr);
  EXPECT_EQ(*Heterogeneous({}).TotalWorldSize(), 0);
  config.module_parallelisms[0].second.data_parallel_size.reset();
  EXPECT_THAT(config.TotalWorldSize().status().message(),
              StartsWith("modules.vision.data_parallel_size: unset"));
}

TEST(MimoParallelism, TouchingSpans) {
  ExpectAccepted(Strict(Heterogeneous({{"language", Sizes(2, 1, 2, 4)},
                                       {"images", Sizes(1, 1, 4)}})),
                 8);
}

TEST(MimoParallelism, OverlappingSpans) {
  const auto two = Heterogeneous(
      {{"images", Sizes(1, 1, 4)}, {"language", Sizes(1, 1, 4, 2)}});
  ExpectAccepted(two, 6);
  ExpectRefused(Strict(two), 6,
                "rank_offset ranges overlap in heterogeneous deployment: "
                "'images' [0, 4) and 'language' [2, 6)");
  const auto three = Heterogeneous({{"language", Sizes(1, 1, 4)},
                                    {"images", Sizes(1, 1, 4, 4)},
                                    {"audios", Sizes(1, 1, 4, 6)}});
  ExpectAccepted(three, 10);
  ExpectRefused(Strict(three), 10, "'images' [4, 8) and 'audios' [6, 10)");
  // An encoder on part of the language module's ranks covers no more of them.
  const auto inside = Heterogeneous(
      {{"language", Sizes(2, 1, 4)}, {"images", Sizes(1, 1, 2, 2)}});
  ExpectAccepted(inside, 8);
  ExpectRefused(inside, 9, "covered ranks [0, 8), world_size is 9");
}

TEST(MimoParallelism, GapsAndIdleRanks) {
  const auto gap = Heterogeneous(
      {{"images", Sizes(1, 1, 1)}, {"language", Sizes(1, 1, 1, 2)}});
  ExpectRefused(gap, 3,
                "modules.language.rank_offset: 2, rank_offset ranges must tile "
                "the distributed world with no gaps: module 'language' "
                "expected start 1, actual start 2; ranks 1 do not participate");
  ExpectAccepted(AllowIdle(gap), 3);
  EXPECT_EQ(*gap.IdleRanks(3), (std::vector<RankSpan>{{1, 2}}));
  ExpectRefused(Strict(AllowIdle(gap)), 3, "no gaps");

  const auto late = Heterogeneous({{"language", Sizes(1, 1, 2, 2)}});
  ExpectRefused(late, 8, "expected start 0, actual start 2; ranks 0-1, 4-7 ");
  EXPECT_EQ(*late.IdleRanks(8), (std::vector<RankSpan>{{0, 2}, {4, 8}}));
  ExpectAccepted(AllowIdle(late), 8);
  ExpectAccepted(Strict(Heterogeneous({{"images", Sizes(1, 1, 4)},
                                       {"language", Sizes(1, 1, 2, 4)}})),
                 6);
}

TEST(MimoParallelism, WorldSizeMismatch) {
  const auto config = Heterogeneous({{"language", Sizes(2, 1, 2)}});
  ExpectRefused(config, 8, "MIMO world size mismatch: expected 4, got 8");
  ExpectRefused(config, 8, "covered ranks [0, 4), world_size is 8");
  ExpectRefused(config, 8, "ranks 4-7 do not participate in any module");
  ExpectAccepted(AllowIdle(config), 8);
  // More ranks than there are cannot be had.
  for (int world : {3, 1, 0, -1}) {
    ExpectRefused(AllowIdle(config), world, "world size mismatch: expected 4");
  }
  constexpr int kMax = std::numeric_limits<int>::max();
  ExpectRefused(
      Heterogeneous({{"language", WithCp(Sizes(kMax, kMax, kMax, kMax), kMax)},
                     {"images", Sizes(1, 1, kMax)}}),
      kMax, "MIMO world size mismatch");
}

TEST(MimoParallelism, EncodersAreDense) {
  const Modules modules = {{"images", WithExperts(Sizes(1, 1, 4), 2, 1)},
                           {"language", Sizes(1, 1, 4, 4)}};
  ExpectRefused(Heterogeneous(modules), 8,
                "Encoder modules must remain dense for MegatronMIMO MoE, "
                "module 'images' has EP=2, ETP=1");
  ExpectRefused(
      Heterogeneous({{"images", WithExperts(Sizes(2, 1, 2), 1, 2)},
                     {"language", Sizes(1, 1, 4, 4)}}),
      8, "modules.images.expert_tensor_parallel_size: 2, Encoder modules");
  ExpectAccepted(Strict(Heterogeneous(
                     {{"images", Sizes(1, 1, 4)},
                      {"language", WithExperts(Sizes(2, 1, 2, 4), 2, 2)}})),
                 8);
  ExpectRefused(Colocated({{"images", WithExperts(Sizes(1, 1, 4), 2, 1)},
                           {"language", Sizes(1, 1, 4)}}),
                4, "must remain dense");
  // One shared grid has one factorisation; Megatron has no such mode.
  const auto shared =
      Homogeneous({{"images", WithExperts(Sizes(1, 1, 4), 2, 1)},
                   {"language", WithExperts(Sizes(1, 1, 4), 2, 1)}});
  ExpectAccepted(shared, 4);
  ExpectRefused(Strict(shared), 4, "must remain dense");
}

TEST(MimoParallelism, SizesWithoutEffectAreWarnedOf) {
  EXPECT_THAT(Homogeneous({{"language", Sizes(2, 2, 2)}}).Warnings(),
              IsEmpty());
  EXPECT_THAT(
      Heterogeneous({{"images", Sizes(1, 1, 4)},
                     {"language", WithExperts(Sizes(2, 2, 2, 4), 1, 2)}})
          .Warnings(),
      ElementsAre("modules.language: EP=1, ETP=2 make groups alone: no module "
                  "has experts"));
}

TEST(MimoParallelism, Topology) {
  auto config = Heterogeneous({{"images", Sizes(1, 1, 1)},
                               {"llm", Sizes(1, 1, 1, 1)},
                               {"audios", Sizes(1, 1, 1, 2)}});
  config.llm_module_name = "llm";
  EXPECT_EQ(
      config.Topology(),
      (ModuleTopology{{"images", {"llm"}}, {"llm", {}}, {"audios", {"llm"}}}));
  config.topology = {{"audios", {}}, {"images", {"llm"}}, {"llm", {"audios"}}};
  ExpectAccepted(config, 3);
  EXPECT_EQ(config.Topology(),
            (ModuleTopology{
                {"images", {"llm"}}, {"llm", {"audios"}}, {"audios", {}}}));
  config.topology["audios"] = {"images"};
  EXPECT_EQ(config.Finalize(3).message(),
            "topology: cycle audios -> images -> llm -> audios, wanted none");
}

TEST(MimoParallelism, EncoderDpSmallerThanLanguageDp) {
  ExpectAccepted(Strict(Heterogeneous({{"images", Sizes(1, 1, 1)},
                                       {"language", Sizes(1, 1, 4, 1)}})),
                 5);
}

TEST(MimoParallelism, StrictRefusesWhatMegatronCannot) {
  struct Case {
    MimoParallelismConfig config;
    int world;
    std::string want;
  };
  const Case cases[] = {
      {Heterogeneous(
           {{"images", Sizes(1, 1, 3)}, {"language", Sizes(1, 1, 2, 3)}}),
       5,
       "DP sizes must be divisible between modules, 'images' has DP=3 and "
       "'language' DP=2"},
      {Heterogeneous(
           {{"images", Sizes(1, 1, 1)}, {"language", Sizes(3, 1, 1, 1)}}),
       4, "Module 'language' has TP=3, but TP size must be a power of 2"},
      {Heterogeneous({{"images", Sizes(1, 1, 1)},
                      {"language", WithCp(Sizes(1, 1, 1, 1), 2)}}),
       3, "modules.language.context_parallel_size: 2, CP must be 1"},
      {Heterogeneous(
           {{"images", Sizes(1, 2, 1)}, {"language", Sizes(1, 1, 1, 2)}}),
       3, "modules.images.pipeline_model_parallel_size: 2, PP of an encoder"},
      {Colocated({{"images", Sizes(2, 1, 3)}, {"language", Sizes(3, 1, 2)}}), 6,
       "TP size must be a power of 2"},
      {Colocated({{"images", WithCp(Sizes(1, 1, 2), 2)},
                  {"language", Sizes(1, 1, 4)}}),
       4, "CP must be 1"},
  };
  for (const Case& c : cases) {
    ExpectAccepted(c.config, c.world);
    ExpectRefused(Strict(c.config), c.world, c.want);
  }
  // No bridge, no limit of one; pipelined language modules are Megatron's.
  ExpectAccepted(Strict(Homogeneous({{"images", WithCp(Sizes(1, 2, 1), 2)},
                                     {"language", WithCp(Sizes(1, 2, 1), 2)}})),
                 4);
  ExpectAccepted(Strict(Heterogeneous({{"language", Sizes(2, 2, 1)},
                                       {"images", Sizes(4, 1, 1, 4)}})),
                 8);
}

TEST(MimoParallelism, Homogeneous) {
  auto config = Homogeneous({{"images", Sizes(2, 2, std::nullopt)},
                             {"language", Sizes(2, 2, std::nullopt)}});
  ASSERT_TRUE(config.Finalize(16).ok());
  EXPECT_EQ(config.Find("images")->data_parallel_size, 4);
  EXPECT_EQ(config.Find("language")->data_parallel_size, 4);
  ExpectAccepted(Homogeneous({{"images", Sizes(1, 1, 2)},
                              {"language", Sizes(1, 1, std::nullopt)}}),
                 2);
  const std::pair<Module, const char*> cases[] = {
      {Sizes(4, 1, 4), "tensor_model_parallel_size: 4"},
      {Sizes(2, 2, 4), "pipeline_model_parallel_size: 2"},
      {Sizes(2, 1, 2), "data_parallel_size: 2"},
      {WithCp(Sizes(2, 1, 4), 2), "context_parallel_size: 2"},
      {WithExperts(Sizes(2, 1, 4), 2, 1), "expert_model_parallel_size: 2"},
      {WithExperts(Sizes(2, 1, 4), 1, 2), "expert_tensor_parallel_size: 2"}};
  for (const auto& [module, key] : cases) {
    ExpectRefused(
        Homogeneous({{"language", Sizes(2, 1, 4)}, {"images", module}}), 8,
        absl::StrCat("modules.images.", key, ", all sizes must be equal"));
  }
  ExpectRefused(
      Homogeneous({{"language", Sizes(1, 1, 4)}, {"i", Sizes(1, 1, 4, 4)}}), 8,
      "modules.i.rank_offset: 4, rank_offset must be 0 in homogeneous");
  ExpectRefused(Homogeneous({{"language", Sizes(1, 1, 4)}}), 8,
                "MIMO world size mismatch: expected 4, got 8");
  ExpectAccepted(AllowIdle(Homogeneous({{"language", Sizes(1, 1, 4)}})), 8);
}

TEST(MimoParallelism, Colocated) {
  auto config = Colocated({{"images", Sizes(2, 1, std::nullopt)},
                           {"language", Sizes(4, 1, std::nullopt)}});
  ASSERT_TRUE(config.Finalize(8).ok());
  EXPECT_EQ(config.Find("images")->data_parallel_size, 4);
  EXPECT_EQ(config.Find("language")->data_parallel_size, 2);
  ExpectRefused(
      Colocated({{"language", Sizes(1, 2, 4)}, {"images", Sizes(1, 2, 4)}}), 8,
      "modules.images.pipeline_model_parallel_size: 2, "
      "pipeline_model_parallel_size must be 1 in colocated deployment, but of "
      "the language module");
  const auto pipelined = Colocated({{"language", Sizes(2, 2, std::nullopt)},
                                    {"images", Sizes(1, 1, std::nullopt)}});
  ExpectAccepted(pipelined, 8);
  ExpectRefused(Strict(pipelined), 8,
                "modules.language.pipeline_model_parallel_size: 2, "
                "pipeline_model_parallel_size must be 1 in colocated "
                "deployment with strict_megatron_compat");
  ExpectRefused(
      Colocated({{"language", Sizes(1, 1, 8)}, {"images", Sizes(1, 1, 4)}}), 8,
      "total_ranks must be equal across modules in colocated deployment, "
      "module 'images' has 4 and 'language' 8");
  ExpectRefused(
      Colocated({{"language", Sizes(1, 1, 4)}, {"i", Sizes(1, 1, 4, 4)}}), 8,
      "modules.i.rank_offset: 4, rank_offset must be 0 in colocated");
}

// Megatron-Bridge's image, and image and audio, run scripts: [tp, pp, dp, at].
TEST(MimoParallelism, LayoutsOfTheRunScripts) {
  using Layout = std::array<int, 4>;
  struct Case {
    std::vector<Layout> layouts;  // of language, vision and audio
    int micro_batch, world;       // the first is of all replicas together
  };
  const Case cases[] = {
      {{{4, 1, 1, 0}, {4, 1, 1, 4}}, 4, 8},
      {{{2, 1, 2, 0}, {2, 1, 2, 4}}, 4, 8},
      {{{2, 2, 1, 0}, {4, 1, 1, 4}}, 4, 8},
      {{{1, 1, 4, 0}, {1, 1, 4, 4}}, 4, 8},
      {{{1, 4, 1, 0}, {1, 1, 4, 4}}, 4, 8},
      {{{1, 2, 2, 0}, {2, 1, 2, 4}}, 4, 8},
      {{{1, 2, 1, 0}, {2, 1, 3, 2}}, 3, 8},
      {{{2, 1, 1, 0}, {2, 1, 3, 2}}, 3, 8},
      {{{1, 1, 1, 0}, {1, 1, 1, 1}}, 4, 2},
      {{{2, 1, 2, 0}, {1, 1, 2, 4}, {1, 1, 2, 6}}, 2, 8},
      {{{2, 1, 1, 0}, {1, 1, 3, 2}, {1, 1, 3, 5}}, 3, 8},
      {{{2, 1, 1, 0}, {1, 1, 4, 2}, {2, 1, 1, 6}}, 4, 8},
      {{{4, 2, 2, 0}, {1, 1, 1, 16}}, 2, 17},
  };
  for (const Case& c : cases) {
    auto config = Strict(Heterogeneous({}));
    const char* names[] = {"language", "vision", "audio"};
    for (size_t i = 0; i < c.layouts.size(); ++i) {
      const auto& [tp, pp, dp, offset] = c.layouts[i];
      config.module_parallelisms.emplace_back(names[i],
                                              Sizes(tp, pp, dp, offset));
    }
    ExpectAccepted(config, c.world);
    for (size_t i = 0; i < c.layouts.size(); ++i) {
      EXPECT_EQ(
          *config.MicroBatchSize(names[i], c.micro_batch / c.layouts[0][2]),
          c.micro_batch / c.layouts[i][2]);
    }
  }
}

}  // namespace
}  // namespace mimo
