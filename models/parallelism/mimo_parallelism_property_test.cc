// Random configs against an oracle that counts rank by rank, and one that
// breaks all rules.
#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "models/parallelism/mimo_parallelism.h"
#include "models/parallelism/random_config.h"

namespace mimo {
namespace {

using Module = ModuleParallelismConfig;

bool PowerOfTwo(int n) { return n == 1 || (n % 2 == 0 && PowerOfTwo(n / 2)); }

// What the messages of the rules say that the config breaks in that world, rule
// by rule; empty if it holds. Rules whose numbers an earlier fault leaves
// without meaning are not looked at.
std::set<std::string> Broken(MimoParallelismConfig config, int world) {
  std::set<std::string> broken;
  const auto expect = [&](bool holds, const std::string& words) {
    if (!holds) broken.insert(words);
  };
  const bool strict = config.strict_megatron_compat;
  const bool heterogeneous =
      config.deployment_mode == DeploymentMode::kHeterogeneous;
  const bool homogeneous =
      config.deployment_mode == DeploymentMode::kHomogeneous;
  expect(config.Find("language") != nullptr, "Language module 'language'");
  for (auto& [name, m] : config.module_parallelisms) {
    const std::pair<const char*, int> sizes[] = {
        {"tensor_model_parallel_size", m.tensor_model_parallel_size},
        {"pipeline_model_parallel_size", m.pipeline_model_parallel_size},
        {"context_parallel_size", m.context_parallel_size},
        {"expert_model_parallel_size", m.expert_model_parallel_size},
        {"expert_tensor_parallel_size", m.expert_tensor_parallel_size},
        {"data_parallel_size", m.data_parallel_size.value_or(1)}};
    bool positive = true;
    for (const auto& [key, size] : sizes) {
      expect(size > 0, absl::StrCat(key, " must be positive"));
      positive &= size > 0;
    }
    expect(!m.sequence_parallel || m.tensor_model_parallel_size != 1,
           "wanted false with tensor_model_parallel_size");
    expect(m.rank_offset >= 0, "rank_offset must be non-negative");
    const int model = m.tensor_model_parallel_size *
                      m.pipeline_model_parallel_size * m.context_parallel_size;
    if (!m.data_parallel_size && heterogeneous) {
      expect(false, "data_parallel_size must be set for module '" + name);
    } else if (!m.data_parallel_size && world <= 0) {
      expect(false, "world_size must be provided");
    } else if (!m.data_parallel_size && positive) {
      expect(world % model == 0, "total_model_parallel_size");
      m.data_parallel_size = world / model;
    }
    if (!positive || !m.data_parallel_size) continue;
    const int experts =
        m.expert_model_parallel_size * m.expert_tensor_parallel_size;
    expect(model / m.pipeline_model_parallel_size * *m.data_parallel_size %
                   experts ==
               0,
           "TP * CP * DP must be divisible");
  }
  if (!broken.empty()) return broken;

  std::map<int, int> owners;  // of ranks
  for (const auto& [name, m] : config.module_parallelisms) {
    const int end = m.rank_offset + *m.TotalRanks();
    expect(end <= world, "world size mismatch");
    for (int r = m.rank_offset; r < end; ++r) ++owners[r];
    expect(heterogeneous || m.rank_offset == 0, "rank_offset must be 0");
    const bool language = name == "language";
    const bool whole = m.pipeline_model_parallel_size == 1;
    if (config.deployment_mode == DeploymentMode::kColocated) {
      expect(whole || (language && !strict),
             "pipeline_model_parallel_size must be 1 in colocated");
    }
    expect(language || (homogeneous && !strict) ||
               (m.expert_model_parallel_size == 1 &&
                m.expert_tensor_parallel_size == 1),
           "Encoder modules must remain dense");
    if (!strict) continue;
    expect(PowerOfTwo(m.tensor_model_parallel_size), "power of 2");
    if (homogeneous) continue;
    expect(m.context_parallel_size == 1, "CP must be 1");
    expect(whole || language, "PP of an encoder must be 1");
  }
  for (const auto& [a, of_a] : config.module_parallelisms) {
    for (auto [b, of_b] : config.module_parallelisms) {
      of_b.sequence_parallel = of_a.sequence_parallel;  // no size
      expect(!homogeneous || of_a == of_b, "all sizes must be equal");
      expect(heterogeneous || *of_a.TotalRanks() == *of_b.TotalRanks(),
             "total_ranks must be equal");
      const int x = *of_a.data_parallel_size, y = *of_b.data_parallel_size;
      expect(!strict || x % y == 0 || y % x == 0, "DP sizes must be divisible");
    }
  }
  Receivers left = config.topology;
  for (const auto& [name, m] : config.module_parallelisms) {
    expect(left.empty() || config.topology.contains(name), "no module");
  }
  for (bool some = true; some;) {  // those that feed none of the others
    std::vector<std::string> ends;
    for (const auto& [name, receivers] : left) {
      if (std::none_of(receivers.begin(), receivers.end(),
                       [&](const auto& to) { return left.contains(to); }))
        ends.push_back(name);
    }
    for (const std::string& name : ends) left.erase(name);
    some = !ends.empty();
  }
  expect(left.empty(), "cycle");
  for (const auto& [name, ndim] : config.module_output_ndim) {
    expect(config.Find(name) != nullptr && ndim > 1 && ndim < 4,
           "module_output_ndim.images");
  }
  for (int r = 0; r < world; ++r) {
    expect(owners[r] > 0 || (!strict && config.allow_idle_ranks), "no gaps");
  }
  for (const auto& [r, count] : owners) {
    expect(count < 2 || !heterogeneous || !strict, "ranges overlap");
  }
  return broken;
}

TEST(MimoParallelismProperty, AcceptsExactlyWhatHolds) {
  Draw draw{std::mt19937(20260101)};
  int accepted = 0, refused = 0;
  std::map<std::string, int> by_rule;
  for (int i = 0; accepted < 2000 || refused < 2000; ++i) {
    ASSERT_LT(i, 100000) << accepted << " accepted, " << refused << " refused";
    int world;
    const MimoParallelismConfig config = RandomConfig(draw, world);
    MimoParallelismConfig done = config;
    const absl::Status status = done.Finalize(world);
    const std::set<std::string> broken = Broken(config, world);
    ASSERT_EQ(status.ok(), broken.empty())
        << status << "\nworld " << world << "\n"
        << ToYaml(config);
    if (!status.ok()) {
      ++refused;
      const int named =
          std::count_if(broken.begin(), broken.end(), [&](const auto& words) {
            if (!absl::StrContains(status.message(), words)) return false;
            ++by_rule[words];
            return true;
          });
      EXPECT_GT(named, 0) << status
                          << ", broken: " << absl::StrJoin(broken, "; ");
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
  EXPECT_EQ(by_rule.size(), 30)
      << "rules that were seen broken: "
      << absl::StrJoin(by_rule, ", ", absl::PairFormatter(": "));
}

// Mended one by one, in the order of Megatron-Bridge's finalize.
TEST(MimoParallelism, RulesInTheirOrder) {
  MimoParallelismConfig config{
      .deployment_mode = DeploymentMode::kHeterogeneous,
      .module_parallelisms = {{"images",
                               {.tensor_model_parallel_size = 3,
                                .pipeline_model_parallel_size = 0,
                                .expert_model_parallel_size = 3,
                                .rank_offset = 1}},
                              {"llm", {.data_parallel_size = 2}}},
      .topology = {{"images", {}}},
      .module_output_ndim = {{"images", 1}},
      .strict_megatron_compat = true};
  Module& images = config.module_parallelisms[0].second;
  const auto refused = [&](int world, const char* want) {
    const absl::Status status = MimoParallelismConfig(config).Finalize(world);
    EXPECT_TRUE(absl::StrContains(status.message(), want)) << status;
  };
  refused(8, "'language' must be in module_parallelisms");
  config.module_parallelisms[1].first = "language";
  refused(8, "data_parallel_size must be set for module 'images'");
  images.data_parallel_size = 3;
  refused(8, "pipeline_model_parallel_size must be positive");
  images.pipeline_model_parallel_size = 1;
  refused(8, "overlap");
  images.rank_offset = 3;
  refused(8, "expected start 2, actual start 3");
  images.rank_offset = 2;
  refused(8, "covered ranks [0, 11), world_size is 8");
  refused(11, "must remain dense");
  images.expert_model_parallel_size = 1;
  refused(11, "power of 2");
  images.tensor_model_parallel_size = 4;
  refused(14, "DP sizes must be divisible");
  images.data_parallel_size = 2;
  refused(10, "topology: no module 'language'");
  config.topology["language"] = {};
  refused(10, "module_output_ndim.images");
  config.module_output_ndim.clear();
  EXPECT_TRUE(config.Finalize(10).ok());
}

}  // namespace
}  // namespace mimo
