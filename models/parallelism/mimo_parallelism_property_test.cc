// Random configs against an oracle that counts rank by rank.
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "models/parallelism/mimo_parallelism.h"

namespace mimo {
namespace {

using Module = ModuleParallelismConfig;

constexpr DeploymentMode kModes[] = {DeploymentMode::kHomogeneous,
                                     DeploymentMode::kColocated,
                                     DeploymentMode::kHeterogeneous};

struct Draw {
  std::mt19937 bits;
  int Below(int end) { return std::uniform_int_distribution(0, end - 1)(bits); }
  bool OneIn(int n) { return Below(n) == 0; }
  int Size() { return std::vector{1, 1, 1, 2, 2, 3, 4}[Below(7)]; }
};

// Mostly right: spans touch, shared spans are of equal sizes.
MimoParallelismConfig RandomConfig(Draw& draw, int& world) {
  MimoParallelismConfig config;
  config.deployment_mode = kModes[draw.Below(3)];
  config.strict_megatron_compat = draw.OneIn(3);
  config.allow_idle_ranks = draw.OneIn(3);
  const bool heterogeneous =
      config.deployment_mode == DeploymentMode::kHeterogeneous;
  world = heterogeneous ? 0 : 1 + draw.Below(12);
  Module m;
  for (const char* name : {"images", "language", "audios"}) {
    if (draw.OneIn(8)) continue;
    if (config.deployment_mode != DeploymentMode::kHomogeneous ||
        config.module_parallelisms.empty() || draw.OneIn(10)) {
      m = {.tensor_model_parallel_size = draw.Size(),
           .pipeline_model_parallel_size =
               config.deployment_mode == DeploymentMode::kColocated &&
                       !draw.OneIn(8)
                   ? 1
                   : draw.Size(),
           .context_parallel_size = draw.OneIn(4) ? 2 : 1,
           .expert_model_parallel_size = draw.OneIn(8) ? draw.Size() : 1,
           .expert_tensor_parallel_size = draw.OneIn(8) ? draw.Size() : 1};
    }
    m.rank_offset = heterogeneous ? world : 0;
    m.data_parallel_size.reset();
    if (heterogeneous ? !draw.OneIn(20) : draw.OneIn(8)) {
      m.data_parallel_size = draw.Size();
    }
    if (draw.OneIn(12)) m.rank_offset += draw.Below(4) - 2;
    if (heterogeneous) {
      world = m.rank_offset +
              m.DenseModelParallelSize() * m.data_parallel_size.value_or(1);
    }
    config.module_parallelisms.emplace_back(name, m);
  }
  if (draw.OneIn(10)) world += draw.Below(5) - 2;
  return config;
}

bool PowerOfTwo(int n) { return n == 1 || (n % 2 == 0 && PowerOfTwo(n / 2)); }

// Whether the config holds for that world, by its rules one by one.
bool Holds(MimoParallelismConfig config, int world) {
  const bool strict = config.strict_megatron_compat;
  const bool heterogeneous =
      config.deployment_mode == DeploymentMode::kHeterogeneous;
  const bool homogeneous =
      config.deployment_mode == DeploymentMode::kHomogeneous;
  std::vector<int> owners(world < 0 ? 0 : world);
  bool language = false;
  for (auto& [name, m] : config.module_parallelisms) {
    const int model = m.tensor_model_parallel_size *
                      m.pipeline_model_parallel_size * m.context_parallel_size;
    if (m.rank_offset < 0) return false;
    if (!m.data_parallel_size) {
      if (heterogeneous || world <= 0 || world % model != 0) return false;
      m.data_parallel_size = world / model;
    }
    const int dp = *m.data_parallel_size;
    const int experts =
        m.expert_model_parallel_size * m.expert_tensor_parallel_size;
    if (model / m.pipeline_model_parallel_size * dp % experts != 0) {
      return false;
    }
    if (m.rank_offset + model * dp > world) return false;
    for (int r = 0; r < model * dp; ++r) ++owners[m.rank_offset + r];
    if (!heterogeneous && m.rank_offset != 0) return false;
    if (config.deployment_mode == DeploymentMode::kColocated &&
        m.pipeline_model_parallel_size != 1) {
      return false;
    }
    if (name == "language") {
      language = true;
    } else if (!homogeneous && experts != 1) {
      return false;
    }
    if (!strict) continue;
    if (!PowerOfTwo(m.tensor_model_parallel_size)) return false;
    if (homogeneous) continue;
    if (m.context_parallel_size != 1) return false;
    if (name != "language" && m.pipeline_model_parallel_size != 1) return false;
  }
  if (!language) return false;
  for (const auto& [a, of_a] : config.module_parallelisms) {
    for (const auto& [b, of_b] : config.module_parallelisms) {
      if (homogeneous && of_a != of_b) return false;
      if (!heterogeneous && *of_a.TotalRanks() != *of_b.TotalRanks()) {
        return false;
      }
      const int x = *of_a.data_parallel_size, y = *of_b.data_parallel_size;
      if (strict && x % y != 0 && y % x != 0) return false;
    }
  }
  for (int count : owners) {
    if (count == 0 && (strict || !config.allow_idle_ranks)) return false;
    if (count > 1 && heterogeneous && strict) return false;
  }
  return true;
}

TEST(MimoParallelismProperty, AcceptsExactlyWhatHolds) {
  Draw draw{std::mt19937(20260101)};
  int accepted = 0, refused = 0;
  for (int i = 0; accepted < 2000 || refused < 2000; ++i) {
    ASSERT_LT(i, 100000) << accepted << " accepted, " << refused << " refused";
    int world;
    const MimoParallelismConfig config = RandomConfig(draw, world);
    MimoParallelismConfig done = config;
    const absl::Status status = done.Finalize(world);
    ASSERT_EQ(status.ok(), Holds(config, world))
        << status << "\nworld " << world << "\n"
        << ToYaml(config);
    if (!status.ok()) {
      ++refused;
      EXPECT_EQ(done, config);
      continue;
    }
    ++accepted;
    // Idle ranks are those of no span.
    std::vector<bool> idle(world, true);
    for (const auto& [name, m] : done.module_parallelisms) {
      const RankSpan span = *done.Span(name);
      EXPECT_EQ(span.end - span.begin, *m.TotalRanks());
      EXPECT_EQ(*m.ExpertDataParallelSize() * m.expert_model_parallel_size *
                    m.expert_tensor_parallel_size *
                    m.pipeline_model_parallel_size,
                *m.TotalRanks());
      for (int64_t r = span.begin; r < span.end; ++r) idle[r] = false;
      // Every module sees each sample of a micro-batch once.
      const auto samples = done.MicroBatchSize(name, 5);
      const int all = 5 * *done.Find("language")->data_parallel_size;
      ASSERT_EQ(samples.ok(), all % *m.data_parallel_size == 0);
      if (samples.ok()) {
        EXPECT_EQ(*samples * *m.data_parallel_size, all);
      }
    }
    const auto spans = *done.IdleRanks(world);
    for (const RankSpan& span : spans) {
      for (int64_t r = span.begin; r < span.end; ++r) {
        EXPECT_TRUE(idle[r]);
        idle[r] = false;
      }
    }
    EXPECT_EQ(idle, std::vector<bool>(world, false));
    const auto node = ParseYaml(ToYaml(done), "again.yaml");
    ASSERT_TRUE(node.ok());
    EXPECT_EQ(*ReadParallelism(*node, world), done);
  }
}

}  // namespace
}  // namespace mimo
