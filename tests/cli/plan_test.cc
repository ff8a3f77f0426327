// mimo plan: what the JSON says, and the tables.
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/cli/plan_testing.h"

namespace mimo {
namespace {

// The language model of TP2 DP2 PP2 behind eight encoders, and one idle rank.
TEST_F(PlanTest, Heterogeneous) {
  const json plan =
      Plan(Config("deployment_mode: heterogeneous, allow_idle_ranks: true, "
                  "modules: {images: {data_parallel_size: 4}, "
                  "language: {tensor_model_parallel_size: 2, "
                  "sequence_parallel: true, "
                  "pipeline_model_parallel_size: 2, data_parallel_size: 2, "
                  "expert_model_parallel_size: 2, rank_offset: 4}}",
                  4, 32),
           13);
  EXPECT_EQ(plan["world_size"], 13);
  EXPECT_EQ(plan["deployment_mode"], "heterogeneous");
  EXPECT_EQ(plan["micro_batches"], 4);
  EXPECT_EQ(plan["idle_ranks"], json({12}));
  EXPECT_EQ(plan["topology"],
            json({{"images", {"language"}}, {"language", json::array()}}));
  const json& language = plan["modules"]["language"];
  for (const auto& [key, value] :
       std::map<std::string, int>{{"tensor_model_parallel_size", 2},
                                  {"pipeline_model_parallel_size", 2},
                                  {"context_parallel_size", 1},
                                  {"data_parallel_size", 2},
                                  {"expert_model_parallel_size", 2},
                                  {"expert_tensor_parallel_size", 1},
                                  {"expert_data_parallel_size", 2},
                                  {"rank_offset", 4},
                                  {"total_ranks", 8},
                                  {"micro_batch_size", 4}}) {
    EXPECT_EQ(language[key], value) << key;
  }
  EXPECT_EQ(language["sequence_parallel"], true);
  EXPECT_EQ(plan["modules"]["images"]["micro_batch_size"], 2);
  const auto list = [](const char* text) { return json::parse(text); };
  const json& groups = plan["groups"]["language"];
  for (const auto& [name, ranks] : std::map<std::string, const char*>{
           {"tp", "[[4,5],[6,7],[8,9],[10,11]]"},
           {"cp", "[[4],[5],[6],[7],[8],[9],[10],[11]]"},
           {"pp", "[[4,8],[5,9],[6,10],[7,11]]"},
           {"dp", "[[4,6],[5,7],[8,10],[9,11]]"},
           {"dp-cp", "[[4,6],[5,7],[8,10],[9,11]]"},
           {"cp-tp", "[[4,5],[6,7],[8,9],[10,11]]"},
           {"pp-tp", "[[4,5,8,9],[6,7,10,11]]"},
           {"dp-tp", "[[4,5,6,7],[8,9,10,11]]"},
           {"dp-cp-tp", "[[4,5,6,7],[8,9,10,11]]"},
           {"pp-dp-cp-tp", "[[4,5,6,7,8,9,10,11]]"},
           {"expert.ep", "[[4,5],[6,7],[8,9],[10,11]]"},
           {"expert.expt_tp", "[[4],[5],[6],[7],[8],[9],[10],[11]]"},
           {"expert.expt_dp", "[[4,6],[5,7],[8,10],[9,11]]"},
           {"expert.ep-expt_tp", "[[4,5],[6,7],[8,9],[10,11]]"},
           {"expert.pp-ep-expt_tp", "[[4,5,8,9],[6,7,10,11]]"},
           {"pos_embd", "[[4],[5],[6],[7]]"},
           {"embd", "[[4,8],[5,9],[6,10],[7,11]]"}}) {
    EXPECT_EQ(groups[name], list(ranks)) << name;
  }
  EXPECT_EQ(groups.size(), 17);
  EXPECT_EQ(plan["groups"]["images"]["dp"], list("[[0,1,2,3]]"));

  const json& memory = plan["memory"];
  ASSERT_EQ(memory["ranks"].size(), 13);
  EXPECT_EQ(memory["ranks"][0], memory["modules"]["images"]["stages"][0]);
  EXPECT_EQ(memory["ranks"][7], memory["modules"]["language"]["stages"][0]);
  EXPECT_EQ(memory["ranks"][8], memory["modules"]["language"]["stages"][1]);
  EXPECT_EQ(memory["ranks"][12]["total"], 0);
  for (const json& rank : memory["ranks"]) {
    EXPECT_EQ(rank["total"].get<int64_t>(),
              rank["weights"].get<int64_t>() +
                  rank["gradients"].get<int64_t>() +
                  rank["optimizer"].get<int64_t>() +
                  rank["activations"].get<int64_t>());
  }
}

TEST_F(PlanTest, SharedRanks) {
  // No section: replicas over all ranks.
  const json homogeneous = Plan(Config("", 1, 4), 4);
  EXPECT_EQ(homogeneous["deployment_mode"], "homogeneous");
  for (const char* module : {"images", "language"}) {
    EXPECT_EQ(homogeneous["modules"][module]["data_parallel_size"], 4);
  }
  EXPECT_EQ(homogeneous["groups"]["images"], homogeneous["groups"]["language"]);

  const json colocated =
      Plan(Config("deployment_mode: colocated, modules: {images: {}, "
                  "language: {tensor_model_parallel_size: 2, "
                  "pipeline_model_parallel_size: 2}}",
                  4, 8),
           8);
  EXPECT_EQ(colocated["modules"]["images"]["data_parallel_size"], 8);
  EXPECT_EQ(colocated["modules"]["language"]["data_parallel_size"], 2);
  EXPECT_EQ(colocated["groups"]["images"]["dp"],
            json::parse("[[0,1,2,3,4,5,6,7]]"));
  const json& memory = colocated["memory"];
  for (int rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(
        memory["ranks"][rank]["weights"].get<int64_t>(),
        memory["modules"]["images"]["stages"][0]["weights"].get<int64_t>() +
            memory["modules"]["language"]["stages"][rank / 4]["weights"]
                .get<int64_t>());
  }
}

TEST_F(PlanTest, TablesShowTheSame) {
  const Ran ran = RunMimo(
      PlanWords(Config("deployment_mode: heterogeneous, allow_idle_ranks: "
                       "true, modules: {images: {data_parallel_size: 1}, "
                       "language: {pipeline_model_parallel_size: 2, "
                       "data_parallel_size: 1, rank_offset: 1}}"),
                5));
  EXPECT_EQ(ran.code, 0) << ran.err;
  for (const char* part :
       {"5 ranks, heterogeneous", "images -> language",
        "(idle)           ranks 3-4", "  embd                   [1,2]",
        "language, stage 1, rank 2 ",
        "modality_submodules.images.encoders.clip_encoder", "trainable",
        "the fullest rank", "padded or packed, keep less\n"}) {
    EXPECT_TRUE(absl::StrContains(ran.out, part)) << part << "\n" << ran.out;
  }
}

// A module behind the language model: planned in this order, and not trained.
TEST_F(PlanTest, AnotherTopology) {
  const std::string config = Config(
      "deployment_mode: heterogeneous, topology: {language: [images], images: "
      "[]}, modules: {images: {data_parallel_size: 1}, language: "
      "{data_parallel_size: 1, rank_offset: 1}}",
      1, 4);
  const json plan = Plan(config, 2);
  EXPECT_EQ(plan["topology"],
            json({{"language", {"images"}}, {"images", json::array()}}));
  EXPECT_EQ(plan["schedule"]["total_stages"], 2);
  const Ran ran = RunMimo(PlanWords(config, 2));
  EXPECT_TRUE(absl::StrContains(ran.out, "\nlanguage -> images\n")) << ran.out;
  Expect({"train", "--config", In("f.yaml"), "--ranks", "2"},
         {"mimo: " + In("f.yaml") +
          ": parallelism.topology: 'images' sends to [], wanted [language]"});
}

// Experts that no module has are said to do nothing.
TEST_F(PlanTest, Warnings) {
  const std::string config = Config(
      "modules: {images: {}, language: {}}, deployment_mode: colocated", 1, 2);
  EXPECT_EQ(Plan(config, 2)["warnings"], json::array());
  Words words = PlanWords(config, 2);
  words.push_back("parallelism.modules.language.expert_model_parallel_size=2");
  const Ran ran = RunMimo(words);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_TRUE(absl::StrContains(ran.out,
                                "\nwarning: modules.language: EP=2, ETP=1 make "
                                "groups alone: no module has experts\n"))
      << ran.out;
  const Ran train = RunMimo(TinyTrain(
      folder_, {"--ranks", "2", "train.train_iters=1", "checkpoint.save=null",
                "parallelism.deployment_mode=colocated",
                "parallelism.modules={images: {}, language: "
                "{expert_tensor_parallel_size: 2}}"}));
  EXPECT_EQ(train.code, 0) << train.err;
  EXPECT_EQ(train.err, absl::StrCat("mimo: warning: ", In("config.yaml"),
                                    ": parallelism.modules.language: EP=1, "
                                    "ETP=2 make groups alone: no module has "
                                    "experts\n"));
}

// Encoder and two stages: (M + 3 - 1) (F + B); a rank works M (F + B) of it.
TEST_F(PlanTest, IdealBubble) {
  const std::string config = Config(
      "deployment_mode: heterogeneous, modules: {images: {data_parallel_size: "
      "1}, language: {pipeline_model_parallel_size: 2, data_parallel_size: 1, "
      "rank_offset: 1}}",
      1, 6);
  const json plan = Plan(config, 3)["schedule"];
  EXPECT_EQ(plan["total_stages"], 3);
  EXPECT_NEAR(plan["ideal_bubble_share"].get<double>(), 2. / 8, 1e-12);
  EXPECT_FALSE(plan.contains("ideal_milliseconds"));
  Words words = PlanWords(config, 3);
  words.insert(words.end(), {"--times", "images=2:3,language=2:3"});
  const Ran ran = RunMimo(words);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_TRUE(absl::StrContains(
      ran.out,
      "schedule: 1F1B over 3 stages; ranks wait 25.0 % of the 40.0 ms that an "
      "iteration takes at best\n"))
      << ran.out;
  for (const char* wrong :
       {"images=2:3", "images=2,language=2:3", "images=2:x,language=2:3",
        "images=-2:3,language=1:1", "images=2:3,language=2:3,audio=1:1",
        "images=2:3,images=2:3"}) {
    words.back() = wrong;
    Expect(words, {absl::StrCat("plan: --times: '", wrong, "', wanted MODULE"),
                   "[images, language]"});
  }
}

// Two modalities, each with ranks and stages of its own.
constexpr char kTwoEncoders[] = R"(
model:
  type: mimo
  language: {module: gpt, num_layers: 4, hidden_size: 32, ffn_hidden_size: 48,
             num_attention_heads: 4, vocab_size: 400, max_sequence_length: 96}
  modalities:
    images:
      encoders: {vit: {module: clip_vit, num_layers: 2, hidden_size: 32,
                       ffn_hidden_size: 40, num_attention_heads: 2,
                       image_size: 16, patch_size: 8}}
    sketches:
      encoders: {vit: {module: clip_vit, num_layers: 3, hidden_size: 32,
                       ffn_hidden_size: 40, num_attention_heads: 2,
                       image_size: 16, patch_size: 4}}
  special_token_ids: {images: 4, sketches: 5}
parallelism:
  deployment_mode: heterogeneous
  modules:
    images: {data_parallel_size: 2}
    sketches: {pipeline_model_parallel_size: 3, data_parallel_size: 1,
               rank_offset: 2}
    language: {pipeline_model_parallel_size: 2, data_parallel_size: 1,
               rank_offset: 5}
train: {micro_batch_size: 2, global_batch_size: 12}
)";

TEST_F(PlanTest, EncodersOfDifferentDepth) {
  const json plan = Plan(kTwoEncoders, 7);
  EXPECT_EQ(plan["topology"], json({{"images", {"language"}},
                                    {"language", json::array()},
                                    {"sketches", {"language"}}}));
  EXPECT_EQ(plan["modules"]["images"]["micro_batch_size"], 1);
  EXPECT_EQ(plan["modules"]["sketches"]["micro_batch_size"], 2);
  EXPECT_EQ(plan["groups"]["sketches"]["pp"], json({{2, 3, 4}}));
  const json& memory = plan["memory"];
  for (int stage : {0, 1, 2}) {
    EXPECT_EQ(memory["ranks"][2 + stage],
              memory["modules"]["sketches"]["stages"][stage]);
  }
  // Six micro-batches through the longer encoder and the language model.
  EXPECT_EQ(plan["schedule"]["total_stages"], 5);
  EXPECT_NEAR(plan["schedule"]["ideal_bubble_share"].get<double>(), 4. / 10,
              1e-12);
  Words timed = PlanWords(kTwoEncoders, 7);
  timed.insert(timed.end(),
               {"--times", "images=2:3,sketches=2:3,language=2:3"});
  const Ran table = RunMimo(timed);
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_TRUE(absl::StrContains(
      table.out,
      "schedule: 1F1B over 5 stages; ranks wait 40.0 % of the 50.0 ms that an "
      "iteration takes at best\n"))
      << table.out;
}

TEST_F(PlanTest, AHundredThousandRanks) {
  const json plan = Plan(
      Config("deployment_mode: heterogeneous, modules: {language: "
             "{tensor_model_parallel_size: 4, pipeline_model_parallel_size: 4, "
             "context_parallel_size: 2, data_parallel_size: 2500}, images: "
             "{data_parallel_size: 20000, rank_offset: 80000}}",
             8, 2000000000),
      100000);
  EXPECT_EQ(plan["micro_batches"], 100000);
  for (const auto& [module, groups] : plan["groups"].items()) {
    const int ranks = plan["modules"][module]["total_ranks"];
    for (const auto& [name, lists] : groups.items()) {
      if (absl::StrContains(name, "embd")) continue;
      std::set<int> seen;
      for (const json& list : lists) {
        for (const json& rank : list) seen.insert(rank.get<int>());
      }
      EXPECT_EQ(seen.size(), ranks) << module << " " << name;
    }
  }
  EXPECT_EQ(plan["memory"]["ranks"].size(), 100000);
}

// A layout that plan accepts is no layout of one rank.
TEST_F(PlanTest, TrainRefusesWhatItCannotRun) {
  Write(In("f.yaml"),
        Config("deployment_mode: heterogeneous, modules: {images: "
               "{data_parallel_size: 1}, language: {data_parallel_size: 1, "
               "rank_offset: 1}}"));
  Expect({"train", "--config", In("f.yaml")},
         {In("f.yaml") + ": parallelism.modules.language.rank_offset: ",
          "MIMO world size mismatch: expected 2, got 1"});
}

}  // namespace
}  // namespace mimo
