// `mimo train --ranks N`: replicas of the whole model are one rank.
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/substitute.h"
#include "gtest/gtest.h"
#include "models/hf/testing.h"
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

// Three ranks share 13 conversations out: in the last round two have none.
TEST(DataParallel, TheTasksMetricsAreThoseOfEvaluate) {
  const std::string folder = TestFolder("run");
  std::string questions;
  for (int i = 0; i < 3; ++i) {
    for (absl::string_view text : absl::StrSplit(
             Read("tests/fixtures/captions.jsonl"), '\n', absl::SkipEmpty())) {
      auto item = nlohmann::json::parse(text);
      item["conversations"][1]["kind"] = item["id"] < "004" ? "few" : "many";
      absl::StrAppend(&questions, item.dump(), "\n");
    }
  }
  Words words = TinyTrain(
      folder, {"data.validation_path=" + Write(folder + "/q.jsonl", questions),
               "data.image_root=tests/fixtures", "data.augment=false",
               "train.train_iters=150", "optimizer.lr_decay_iters=150",
               "optimizer.lr=1e-2", "train.eval_interval=150",
               "train.micro_batch_size=4", "train.global_batch_size=12"});
  const Trained trained = Train(words, 3, folder);
  words[0] = "evaluate";
  words.insert(words.end(), {"--checkpoint", folder + "/save", "--json"});
  const Ran ran = RunMimo(words);
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto wanted = nlohmann::json::parse(ran.out);
  for (const char* name : {"few_exact_match", "many_exact_match"}) {
    EXPECT_EQ(trained.metrics.back()[name], wanted[name]) << name;
    EXPECT_GT(wanted[name], 0) << name;
  }
}

// Without a whole model on a rank there is nobody to ask: said at the start.
TEST(DataParallel, TheTasksMetricsAreMissedAloud) {
  for (const int interval : {0, 3}) {
    const std::string folder = TestFolder("run");
    Words words =
        TinyTrain(folder, {"data.validation_fraction=0.3",
                           "parallelism.modules={images: "
                           "{}, language: {tensor_model_parallel_size: 2}}",
                           "parallelism.deployment_mode=colocated",
                           absl::StrCat("train.eval_interval=", interval)});
    words.push_back("--ranks=2");
    const Ran ran = RunMimo(words);
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(absl::StrContains(ran.err,
                                "parallelism.modules: no rank has the "
                                "whole model, so validation measures "
                                "lm_loss but no exact_match\n"),
              interval > 0)
        << ran.err;
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
  EXPECT_EQ(message({"optimizer.modules.image.lr_mult=0.1"}, 2),
            "mimo: optimizer.modules.image: no such module, wanted one of "
            "language, images\n");
  EXPECT_EQ(message({}, 0), "mimo: train: --ranks: 0, wanted 1 to 1024\n");
  EXPECT_EQ(message({"train.device=cuda"}, 2),
            "mimo: train.device: cuda, wanted cpu (ranks that are threads "
            "train on the CPU; mimo launch starts a process for each GPU)\n");
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
