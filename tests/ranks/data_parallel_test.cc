// `mimo train --ranks N`: replicas of the whole model are one rank.
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/substitute.h"
#include "gtest/gtest.h"
#include "models/hf/testing.h"
#include "tests/ranks/layout.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/tiny_run.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

TEST(DataParallel, GoldenBatch) {
  for (const std::string name :
       {"llava15_tiny", "llava_gqa_tied", "llava_full_multi"}) {
    const std::string golden = UnpackGolden(name);
    const int64_t rows =
        ReadArrays(golden + "/golden.safetensors").at("input_ids").shape[0];
    for (const bool frozen : {true, false}) {
      std::map<int, Trained> outcomes;
      for (const int ranks : {1, 2, 3, 4}) {
        if (rows % ranks != 0) continue;
        for (const char* time : {"once", "again"}) {
          SCOPED_TRACE(absl::StrCat(name, frozen ? " frozen " : " ", ranks));
          const std::string folder = TestFolder(time);
          const Trained outcome = Train(
              {"train", "--config",
               Write(
                   folder + "/config.yaml",
                   absl::Substitute(kGoldenRun, golden, frozen, rows, folder))},
              ranks, folder);
          const auto [it, first] = outcomes.emplace(ranks, outcome);
          EXPECT_TRUE(first || outcome == it->second) << "not bitwise";
        }
        ExpectNear(outcomes.at(ranks), outcomes.at(1));
      }
      EXPECT_GT(outcomes.size(), 1u) << rows;
    }
  }
}

// Pictures and conversations of many lengths, validated on the way.
TEST(DataParallel, Conversations) {
  const Words more = {"train.train_iters=20", "train.micro_batch_size=1",
                      "train.eval_interval=10", "train.eval_iters=2",
                      "data.validation_fraction=0.3"};
  const auto train = [&](int ranks) {
    const std::string folder = TestFolder(absl::StrCat(ranks));
    return Train(TinyTrain(folder, more), ranks, folder);
  };
  const Trained one = train(1);
  EXPECT_EQ(one.metrics.size(), 22u);
  for (const int ranks : {2, 4}) {
    const Trained several = train(ranks);
    ExpectNear(several, one);
    EXPECT_TRUE(train(ranks) == several) << "not bitwise";
  }
}

// The share of questions whose text, as a model of one rank says it, is right:
// under any layout what teacher forcing counts. 78 questions of two a
// conversation, in rounds of 12.
TEST(DataParallel, TheTasksMetricsAreThoseOfEvaluate) {
  const std::string folder = TestFolder("run");
  std::string questions;
  for (int i = 0; i < 3; ++i) {
    for (absl::string_view text : absl::StrSplit(
             Read("tests/fixtures/captions.jsonl"), '\n', absl::SkipEmpty())) {
      auto item = nlohmann::json::parse(text);
      auto& turns = item["conversations"];
      turns.push_back({{"from", "human"}, {"value", turns[0]["value"]}});
      turns[0]["value"] = "Who is there?";
      turns.push_back(turns[1]);
      turns[1] = {{"from", "gpt"}, {"value", "Nobody."}, {"kind", "who"}};
      turns[3]["kind"] = "what";
      absl::StrAppend(&questions, item.dump(), "\n");
    }
  }
  const Words common = {
      "data.validation_path=" + Write(folder + "/q.jsonl", questions),
      "data.image_root=tests/fixtures",
      "data.augment=false",
      "model.language.num_layers=2",
      "model.language.max_sequence_length=128",
      "optimizer.lr_decay_iters=150",
      "train.eval_iters=1",
      "train.global_batch_size=12"};
  Words words = TinyTrain(folder, common);
  words.insert(words.end(),
               {"train.train_iters=150", "optimizer.lr=1e-2",
                "train.eval_interval=150", "train.micro_batch_size=4"});
  const Trained trained = Train(words, 1, folder);
  words[0] = "evaluate";
  words.insert(words.end(), {"--checkpoint", folder + "/save", "--json"});
  const Ran ran = RunMimo(words);
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto wanted = nlohmann::json::parse(ran.out);
  EXPECT_GT(wanted["what_exact_match"], 0);
  EXPECT_LT(wanted["what_exact_match"], 1);
  const auto check = [&](const nlohmann::json& line) {
    for (const char* kind : {"what", "who"}) {
      const std::string name = absl::StrCat(kind, "_exact_match");
      EXPECT_EQ(line[name], wanted[name]) << name;
    }
  };
  check(trained.metrics.back());
  for (const auto& [layout, micro_batch] : std::vector<std::pair<Layout, int>>{
           {{"homogeneous", 3, "dp3", "dp3"}, 4},
           {{"homogeneous", 2, "dp2", "dp2"}, 1},
           {{"homogeneous", 2, "tp2 sp", "tp2 sp"}, 12},
           {{"homogeneous", 4, "tp2 pp2", "tp2 pp2"}, 2},
           {{"homogeneous", 4, "cp2 dp2", "cp2 dp2"}, 2},
           {{"colocated", 4, "dp4", "tp2 cp2"}, 4},
           {{"colocated", 4, "tp2 dp2", "pp2 dp2"}, 3},
           {{"heterogeneous", 3, "dp1", "dp2 @1"}, 3},
           {{"heterogeneous", 5, "dp3", "pp2 dp1 @3"}, 6}}) {
    SCOPED_TRACE(layout.Yaml());
    const std::string many = TestFolder("many");
    Words words = TinyTrain(many, common);
    std::ofstream(many + "/config.yaml", std::ios::app) << layout.Yaml();
    words.insert(words.end(),
                 {"train.train_iters=151",
                  "optimizer.modules={language: "
                  "{lr_mult: 0}, images: {lr_mult: 0}}",
                  "train.eval_interval=151",
                  absl::StrCat("train.micro_batch_size=", micro_batch),
                  "checkpoint.load=" + folder + "/save"});
    check(Train(words, layout.ranks, many).metrics.back());
  }
}

// The pixels of four replicas, then of one, then of two.
TEST(DataParallel, AnyNumberOfRanksGoesOn) {
  const std::string whole = TestFolder("whole"), parts = TestFolder("parts");
  const Words more = {"train.train_iters=9", "train.micro_batch_size=1"};
  const Trained wanted = Train(TinyTrain(whole, more), 1, whole);
  Trained got;
  for (const auto& [ranks, until] : {std::pair(4, 3), {1, 6}, {2, 9}}) {
    Words words = TinyTrain(parts, more);
    words.push_back("checkpoint.load=" + parts + "/save");
    words.push_back(absl::StrCat("train.train_iters=", until));
    words.push_back("optimizer.lr_decay_iters=12");
    got = Train(words, ranks, parts);
  }
  ExpectNear(got, wanted);
  // Other commands read what two ranks have saved.
  const Ran converted =
      RunMimo({"convert", "--from", parts + "/save", "--to", parts + "/hf"});
  EXPECT_EQ(converted.code, 0) << converted.err;
  const Ran again = RunMimo(
      {"convert", "--from", parts + "/hf", "--to", parts + "/again/save"});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(LoadSaved(parts + "/again", "model"), got.model);
}

TEST(DataParallel, MistakesAreOneLine) {
  const auto message = [](Words overrides, int ranks) {
    Words words = TinyTrain(TestFolder("run"), overrides);
    words.push_back(absl::StrCat("--ranks=", ranks));
    const Ran ran = RunMimo(words);
    EXPECT_EQ(ran.code, 2) << ran.err;
    EXPECT_TRUE(absl::EndsWith(ran.err, "\n"));
    EXPECT_EQ(ran.err.find('\n'), ran.err.size() - 1) << ran.err;
    return ran.err;
  };
  EXPECT_TRUE(absl::StrContains(message({}, 3), "global_batch_size"));
  EXPECT_TRUE(absl::StrContains(
      message({"parallelism.modules={language: {data_parallel_size: 3}, "
               "images: {}}"},
              2),
      "parallelism"));
  const std::string file = "mimo: " + TestFolder("run") + "/config.yaml";
  EXPECT_EQ(message({"optimizer.modules.image.lr_mult=0.1"}, 2),
            file +
                ": optimizer.modules.image: no such module, wanted one of "
                "language, images, images.encoders, "
                "images.input_projections\n");
  EXPECT_EQ(message({}, 0), "mimo: train: --ranks: 0, wanted 1 to 1024\n");
  EXPECT_EQ(
      message({"train.device=cuda"}, 2),
      file +
          " with train.device=cuda: train.device: cuda, wanted cpu (ranks "
          "that are threads train on the CPU; mimo launch starts a "
          "process for each GPU)\n");
  EXPECT_EQ(message({"train.dtype=bfloat16"}, 2),
            file +
                " with train.dtype=bfloat16: train.dtype: \"bfloat16\", wanted "
                "float32 or float64 on the CPU\n");
}

// The projector alone learns at a tenth of the rate.
TEST(DataParallel, ModulesHaveRatesOfTheirOwn) {
  const std::string folder = TestFolder("run");
  Words words =
      TinyTrain(folder, {"optimizer.modules.language.lr_mult=0",
                         "train.train_iters=1", "optimizer.lr_warmup_iters=0"});
  const Trained trained = Train(words, 2, folder);
  words.push_back(
      "optimizer.modules={language: {lr_mult: 0}, "
      "images: {lr_mult: 0}}");
  const Trained still = Train(words, 2, folder);
  int moved = 0;
  for (const auto& [name, values] : trained.model) {
    if (absl::StartsWith(name, "language_model.")) {
      EXPECT_EQ(values, still.model.at(name)) << name;
    } else {
      moved += values != still.model.at(name);
    }
  }
  EXPECT_GT(moved, 0);
}

}  // namespace
}  // namespace mimo
