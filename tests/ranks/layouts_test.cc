// `mimo train --ranks N` under every layout: the losses and the weights of one
// rank. Samples have 0, 1 or 3 pictures.
//
// layouts_test trains each layout once, with a number of micro-batches and a
// frozen part that go round; all_layouts_test with all of them, twice.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "gtest/gtest.h"
#include "models/hf/testing.h"
#include "tests/ranks/layout.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

const std::vector<Layout>& Layouts() {
  static const auto& layouts = *new std::vector<Layout>{
      {"homogeneous", 2, "dp2", "dp2"},
      {"homogeneous", 4, "tp2 dp2", "tp2 dp2"},
      {"homogeneous", 4, "tp4", "tp4"},
      {"homogeneous", 2, "cp2", "cp2"},
      {"homogeneous", 8, "tp2 cp2 dp2", "tp2 cp2 dp2"},
      {"homogeneous", 8, "tp2 pp2 dp2", "tp2 pp2 dp2"},
      {"colocated", 4, "dp4", "tp4"},
      {"colocated", 4, "dp4", "tp2 dp2"},
      {"colocated", 4, "dp4", "tp2 cp2"},
      {"colocated", 4, "dp4", "cp4"},
      {"colocated", 4, "dp4", "pp2 dp2"},
      {"colocated", 6, "cp2 dp3", "pp2 dp3"},
      {"colocated", 4, "tp4", "dp4"},
      {"colocated", 4, "tp2 dp2", "dp4"},
      {"colocated", 4, "tp2 cp2", "dp4"},
      {"heterogeneous", 3, "dp2", "dp1 @2"},
      {"heterogeneous", 3, "dp1", "dp2 @1"},
      {"heterogeneous", 5, "dp2", "dp3 @2"},
      {"heterogeneous", 3, "pp2 dp1", "dp1 @2"},
      {"heterogeneous", 6, "pp2 dp2", "pp2 dp1 @4"},
      {"heterogeneous", 3, "dp1", "cp2 dp1 @1"},
      {"heterogeneous", 5, "cp2 dp2", "dp3 @2"},
      {"heterogeneous", 3, "dp2", "dp2 @1"},  // rank 1 has both
      // Megatron-Bridge, run_hetero_llava_parallelism_tests.sh.
      {"heterogeneous", 8, "tp4 dp1 @4", "tp4 dp1"},
      {"heterogeneous", 8, "tp2 dp2 @4", "tp2 dp2"},
      {"heterogeneous", 8, "tp4 dp1 @4", "tp2 pp2 dp1"},
      {"heterogeneous", 8, "dp4 @4", "dp4"},
      {"heterogeneous", 8, "tp4 dp1 @4", "pp4 dp1"},
      {"heterogeneous", 8, "dp4 @4", "pp4 dp1"},
      {"heterogeneous", 8, "tp2 dp2 @4", "pp2 dp2"},
      {"heterogeneous", 8, "dp4 @4", "tp4 dp1"},
      {"heterogeneous", 8, "tp2 dp2 @4", "tp2 pp2 dp1"},
      {"heterogeneous", 8, "dp4 @4", "tp2 dp2"},
      {"heterogeneous", 8, "tp2 dp3 @2", "pp2 dp1"},
      {"heterogeneous", 8, "tp2 dp3 @2", "tp2 dp1"},
      {"heterogeneous", 4, "tp2 dp1 @2", "tp2 dp1"},
      {"heterogeneous", 4, "dp2 @2", "dp2"},
      {"heterogeneous", 2, "dp1 @1", "dp1"},
      {"heterogeneous", 8, "tp2 dp2 @4", "pp4 dp1"},
      {"heterogeneous", 8, "tp2 dp2 @4", "tp4 dp1"},
  };
  return layouts;
}

TEST(Layouts, TrainAsOneRank) {
  std::map<std::pair<int, int>, Trained> wanted;
  const auto check = [&](const Layout& layout, int micro_batches, int part,
                         bool twice) {
    const std::string& frozen = FrozenParts()[part];
    SCOPED_TRACE(
        absl::StrCat(layout.Yaml(), micro_batches, " micro-batches\n", frozen));
    const auto [one, first] = wanted.try_emplace({micro_batches, part});
    if (first) {
      one->second = TrainOn(TestFolder("one"), kOneRank, micro_batches, frozen);
    }
    const auto run = [&] {
      return TrainOn(TestFolder("many"), layout, micro_batches, frozen);
    };
    const Trained got = run();
    ExpectNear(got, one->second);
    EXPECT_TRUE(!twice || run() == got) << "not bitwise";
  };
  for (size_t i = 0; i < Layouts().size(); ++i) {
    const Layout& layout = Layouts()[i];
    if (!All()) {
      check(layout, i % 8 == 7 ? 8 : 1 + i % 2, i / 2 % FrozenParts().size(),
            i % 5 == 0);
      continue;
    }
    for (int micro_batches : {1, 2, 8})
      for (size_t part = 0; part < FrozenParts().size(); ++part)
        check(layout, micro_batches, part, /*twice=*/true);
  }
}

// How far ahead changes nothing but the time. Where the projection is trained,
// the encoder's first stage runs ahead, its last does not.
TEST(Layouts, FrozenEncodersRunAhead) {
  const Layout layout = {"heterogeneous", 4, "pp2 dp1", "pp2 dp1 @2"};
  for (int part : {1, 3}) {
    std::vector<Trained> trained;
    const Trained one =
        TrainOn(TestFolder("one"), kOneRank, 8, FrozenParts()[part]);
    for (int ahead : {0, 1, 3}) {
      trained.push_back(
          TrainOn(TestFolder("ahead"), layout, 8, FrozenParts()[part],
                  {absl::StrCat("train.encoder_run_ahead=", ahead)}));
      EXPECT_TRUE(trained.back() == trained[0]) << ahead;
    }
    ExpectNear(trained[0], one);
  }
}

TEST(Layouts, PackedAsOneRankPadded) {
  const Trained wanted = TrainOn(TestFolder("one"), kOneRank, 2);
  for (const Layout& layout :
       std::vector<Layout>{kOneRank,
                           {"homogeneous", 8, "tp2 cp2 dp2", "tp2 cp2 dp2"},
                           {"colocated", 4, "dp4", "tp2 cp2"},
                           {"colocated", 4, "tp2 dp2", "pp2 dp2"},
                           {"heterogeneous", 6, "pp2 dp2", "pp2 dp1 @4"}}) {
    SCOPED_TRACE(layout.Yaml());
    ExpectNear(TrainOn(TestFolder("packed"), layout, 2, "",
                       {"train.pack_sequences=true"}),
               wanted);
  }
}

// The job that `mimo` has by default: flags, drawn by four artists.
TEST(Layouts, DefaultData) {
  const std::string config = Read("configs/flags.yaml");
  // The checkout, for the drawings in .deps: a test's files are links into it.
  setenv("BUILD_WORKSPACE_DIRECTORY",
         std::filesystem::canonical("configs/flags.yaml")
             .parent_path()
             .parent_path()
             .c_str(),
         1);
  const std::string data = TestFolder("data");
  const auto run = [&](const Layout& layout) {
    const std::string folder = TestFolder("run");
    return Train(
        {"train", "--config",
         Write(folder + "/config.yaml", config + layout.Yaml()),
         absl::StrCat("train.micro_batch_size=", 8 / Dp(layout.language)),
         "train.global_batch_size=8", "train.train_iters=20",
         "data.data_dir=" + data, "checkpoint.save=" + folder + "/save",
         "logging.metrics=" + folder + "/metrics.jsonl",
         "logging.log_interval=1", "logging.progress=false",
         "logging.tensorboard_dir=null"},
        layout.ranks, folder);
  };
  const Trained wanted = run(kOneRank);
  ASSERT_EQ(wanted.metrics.size(), 20u);
  for (const Layout& layout :
       std::vector<Layout>{{"homogeneous", 8, "tp2 pp2 dp2", "tp2 pp2 dp2"},
                           {"homogeneous", 2, "cp2", "cp2"},
                           {"colocated", 4, "dp4", "tp2 cp2"},
                           {"heterogeneous", 4, "pp2 dp1", "dp2 @2"}}) {
    SCOPED_TRACE(layout.Yaml());
    const Trained got = run(layout);
    ExpectNear(got, wanted);
    EXPECT_TRUE(layout.ranks > 4 || run(layout) == got) << "not bitwise";
  }
}

// The first update of random layouts, each with some activation checkpointing,
// of a model with one encoder or two: its moments are the gradients.
TEST(Layouts, RandomOnesHaveTheGradientsOfOneRank) {
  const int seed = All() ? std::random_device{}() : 20261128;
  std::mt19937 bits(seed);
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  const auto train = [](const std::string& name, bool two, const Layout& layout,
                        int micro_batches, const std::string& language = "off",
                        const std::string& vision = "off") {
    const std::string encoder =
        two ? "modalities.images.encoders.wide" : "vision";
    return TrainOn(
        TestFolder(name), layout, micro_batches, "",
        {"train.train_iters=1", "model.language.recompute=" + language,
         absl::StrCat("model.", encoder, ".recompute=", vision)},
        two ? kTwoEncoders : kLlava);
  };
  const char* const recompute[] = {"off", "selective", "full"};
  std::vector<Trained> wanted;
  for (int i = 0; i < 6; ++i)
    wanted.push_back(train("one", i >= 3, kOneRank, 1 + i % 3));
  for (int i = 0; i < 200; ++i) {
    const bool two = i % 4 == 0;
    const Layout layout = RandomLayout(bits);
    const std::string language = recompute[Pick(bits, {0, 1, 2})],
                      vision = recompute[Pick(bits, {0, 1, 2})];
    SCOPED_TRACE(absl::StrCat(layout.Yaml(), "recompute ", language, ", ",
                              vision, two ? ", two encoders" : ""));
    const Trained got = train("many", two, layout, 1 + i % 3, language, vision);
    const Trained& one = wanted[(two ? 3 : 0) + i % 3];
    ExpectNear(got, one);
    double all = 0;
    for (const auto& [name, values] : one.optimizer)
      if (absl::StartsWith(name, "exp_avg.")) all += Norm(values);
    for (const auto& [name, values] : one.optimizer) {
      if (!absl::StartsWith(name, "exp_avg.")) continue;
      const auto found = got.optimizer.find(name);
      ASSERT_TRUE(found != got.optimizer.end()) << name;
      ASSERT_EQ(found->second.size(), values.size()) << name;
      std::vector<double> difference(values.size());
      for (size_t k = 0; k < values.size(); ++k)
        difference[k] = found->second[k] - values[k];
      EXPECT_LE(Norm(difference), 1e-4 * Norm(values) + 1e-6 * all) << name;
    }
  }
}

TEST(Layouts, GoldenBatch) {
  const std::vector<Layout> layouts = {
      {"homogeneous", 2, "tp2", "tp2"},
      {"homogeneous", 2, "pp2", "pp2"},
      {"colocated", 2, "tp2", "cp2"},
      {"heterogeneous", 3, "tp2 dp1", "dp1 @2"},
      {"heterogeneous", 3, "dp1", "pp2 dp1 @1"}};
  for (const std::string name :
       {"llava15_tiny", "llava_gqa_tied", "llava_full_multi"}) {
    const std::string golden = UnpackGolden(name);
    const int64_t rows =
        ReadArrays(golden + "/golden.safetensors").at("input_ids").shape[0];
    const auto run = [&](const std::string& yaml, int ranks) {
      const std::string folder = TestFolder("run");
      const std::string config = absl::Substitute(
          kGoldenRun, golden, name == "llava15_tiny", rows, folder);
      return Train(
          {"train", "--config", Write(folder + "/config.yaml", config + yaml)},
          ranks, folder);
    };
    const Trained wanted = run("", 1);
    for (const Layout& layout : layouts) {
      SCOPED_TRACE(name + " " + layout.Yaml());
      const Trained got = run(layout.Yaml(), layout.ranks);
      ExpectNear(got, wanted);
      EXPECT_TRUE(run(layout.Yaml(), layout.ranks) == got) << "not bitwise";
    }
  }
}

}  // namespace
}  // namespace mimo
