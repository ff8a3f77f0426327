// Modules with learning rates and weight decays of their own under every kind
// of layout: AdamW's formula after one iteration, one rank's run after 20.
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "tests/ranks/layout.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

struct Rates {
  double lr_mult, wd_mult;
};

using RatesOf = std::map<std::string, Rates>;  // of optimizer.modules

Trained TrainWith(const std::string& folder, const RatesOf& rates,
                  const Layout& layout, int iterations) {
  std::vector<std::string> sections;
  for (const auto& [name, own] : rates) {
    sections.push_back(absl::StrCat(name, ": {lr_mult: ", own.lr_mult,
                                    ", wd_mult: ", own.wd_mult, "}"));
  }
  return TrainOn(
      folder, layout, 2, "",
      {absl::StrCat("optimizer.modules={", absl::StrJoin(sections, ", "), "}"),
       absl::StrCat("train.train_iters=", iterations),
       "model.language.tie_word_embeddings=true"});
}

// Of the part, if that has its own, or of the module.
Rates Own(const RatesOf& rates, const std::string& tensor) {
  if (absl::StartsWith(tensor, "language_model.")) return rates.at("language");
  for (const auto& [name, own] : rates) {
    const std::string part = absl::StrCat("modality_submodules.", name, ".");
    if (name != "images" && absl::StartsWith(tensor, part)) return own;
  }
  return rates.at("images");
}

// `trained`, in `folder` and one iteration after `start`, in double.
void ExpectOneUpdate(const std::string& folder, const Trained& trained,
                     const Trained& start, const RatesOf& rates) {
  const double rate = trained.metrics.at(0)["learning_rate"];
  const auto tensors =
      ShardedTensors::Open(*FindCheckpoint(folder + "/save"), "model");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  for (const auto& [name, values] : trained.model) {
    const Rates own = Own(rates, name);
    const double lr = rate * own.lr_mult;
    const double decay =
        tensors->shapes().at(name).size() >= 2 ? 0.1 * own.wd_mult : 0;
    const auto& before = start.model.at(name);
    if (!trained.optimizer.contains("exp_avg." + name)) {  // no layer that runs
      EXPECT_EQ(values, before) << name;
      continue;
    }
    const auto& m = trained.optimizer.at("exp_avg." + name);
    const auto& v = trained.optimizer.at("exp_avg_sq." + name);
    for (size_t i = 0; i < values.size(); ++i) {
      const double step =
          m[i] / (1 - 0.9) / (std::sqrt(v[i] / (1 - 0.999)) + 1e-8);
      const double wanted = before[i] - lr * (step + decay * before[i]);
      // Roundings of a weight and of a step to float32.
      ASSERT_NEAR(values[i], wanted,
                  2e-7 * std::fabs(before[i]) + 2e-6 * lr * std::fabs(step))
          << name << "[" << i << "]";
    }
  }
}

TEST(ModuleRates, AreOneRanks) {
  const std::vector<Layout> layouts = {
      kOneRank,
      {"homogeneous", 4, "tp2 pp2", "tp2 pp2"},
      {"homogeneous", 8, "tp2 pp2 dp2", "tp2 pp2 dp2"},
      {"colocated", 4, "dp4", "tp2 dp2"},
      {"colocated", 4, "tp2 dp2", "pp2 dp2"},
      {"heterogeneous", 5, "dp2", "dp3 @2"},
      {"heterogeneous", 6, "pp2 dp2", "pp2 dp1 @4"},
      {"heterogeneous", 3, "dp2", "dp2 @1"}};  // rank 1 has both
  const RatesOf still = {{"images", {0, 1}}, {"language", {0, 1}}};
  for (const RatesOf& rates :
       {RatesOf{{"images", {0.1, 0}}, {"language", {1, 1}}},
        {{"images", {3, 2}}, {"language", {1, 0.5}}},
        {{"images", {1, 1}},
         {"images.encoders", {0.2, 3}},
         {"language", {1, 1}}},
        {{"images.encoders", {0, 1}},
         {"images.input_projections", {2, 0}},
         {"language", {0.5, 1}}}}) {
    Trained one;
    for (const Layout& layout : layouts) {
      SCOPED_TRACE(layout.Yaml());
      const Trained start = TrainWith(TestFolder("start"), still, layout, 1);
      const std::string folder = TestFolder("first");
      const Trained first = TrainWith(folder, rates, layout, 1);
      EXPECT_EQ(first.optimizer, start.optimizer);
      ExpectOneUpdate(folder, first, start, rates);
      const Trained got = TrainWith(TestFolder("run"), rates, layout, 20);
      if (layout.ranks == 1) one = got;
      ExpectNear(got, one);
    }
  }
}

}  // namespace
}  // namespace mimo
