// mimo plan: every mistake of a layout by its words, and what the JSON says.
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "tests/cli/mistakes.h"

namespace mimo {
namespace {

using nlohmann::json;

// A tiny LLaVA with `parallelism` and batch sizes.
std::string Config(const std::string& parallelism, int micro_batch_size = 1,
                   int global_batch_size = 1) {
  return absl::Substitute(R"(
model:
  type: llava
  language: {num_layers: 4, hidden_size: 32, ffn_hidden_size: 48,
             num_attention_heads: 4, vocab_size: 400, max_sequence_length: 96}
  vision: {num_layers: 2, hidden_size: 24, ffn_hidden_size: 40,
           num_attention_heads: 2, image_size: 16, patch_size: 8}
  special_token_ids: {images: 4}
parallelism: {$0}
train: {micro_batch_size: $1, global_batch_size: $2}
)",
                          parallelism, micro_batch_size, global_batch_size);
}

class PlanTest : public Mistakes {
 protected:
  Words PlanWords(const std::string& config, int world) {
    Write(In("f.yaml"), config);
    return {"plan", "--config", In("f.yaml"), "--world", absl::StrCat(world)};
  }
  json Plan(const std::string& config, int world) {
    Words words = PlanWords(config, world);
    words.push_back("--json");
    const Ran ran = RunMimo(words);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return json::parse(ran.out);
  }
};

TEST_F(PlanTest, EveryMistakeOfALayout) {
  const std::string heterogeneous = "deployment_mode: heterogeneous, ";
  const std::string colocated = "deployment_mode: colocated, ";
  const std::string strict = "strict_megatron_compat: true, ";
  struct Case {
    std::string parallelism;
    int world;
    std::string key;  // below parallelism
    std::string words;
  };
  std::vector<Case> cases = {
      // Of one module.
      {"modules: {language: {rank_offset: -1}, images: {}}", 1,
       "modules.language.rank_offset", "rank_offset must be non-negative"},
      {"modules: {language: {tensor_model_parallel_size: 3, "
       "pipeline_model_parallel_size: 2}, images: {}}",
       10, "modules.language.data_parallel_size",
       "world_size (10) is not divisible by total_model_parallel_size (6)"},
      {"modules: {language: {data_parallel_size: 0}, images: {}}", 1,
       "modules.language.data_parallel_size",
       "data_parallel_size must be positive"},
      {"modules: {language: {tensor_model_parallel_size: 2, "
       "expert_tensor_parallel_size: 3}, images: {}}",
       2, "modules.language.expert_tensor_parallel_size",
       "TP * CP * DP must be divisible by expert_tensor_parallel_size * "
       "expert_model_parallel_size, found TP=2, CP=1, DP=1, ETP=3, EP=1"},
      // Of names.
      {heterogeneous + "modules: {images: {}, audios: {}}", 2, "modules",
       "Language module 'language' must be in module_parallelisms, found "
       "[images, audios]"},
      {heterogeneous, 1, "modules", "must be in module_parallelisms, found []"},
      {"llm_module_name: llm, modules: {language: {}, images: {}}", 1,
       "modules", "Language module 'llm' must be in module_parallelisms"},
      {"modules: {language: {}}", 1, "modules",
       "keys must match modality module names + 'language': missing [images], "
       "extra []"},
      {"modules: {language: {}, images: {}, audios: {}}", 1, "modules",
       "missing [], extra [audios]"},
      {"modules: {}, special_token_ids: {images: 5}", 1,
       "special_token_ids.images", "5, wanted the model's 4"},
      // Heterogeneous.
      {heterogeneous + "modules: {language: {data_parallel_size: 4}, "
                       "images: {rank_offset: 4}}",
       8, "modules.images.data_parallel_size",
       "data_parallel_size must be set for module 'images' in heterogeneous "
       "deployment"},
      {heterogeneous + strict +
           "modules: {images: {data_parallel_size: 4}, "
           "language: {data_parallel_size: 4, rank_offset: 2}}",
       6, "modules.language.rank_offset",
       "rank_offset ranges overlap in heterogeneous deployment: 'images' [0, "
       "4) and 'language' [2, 6)"},
      {heterogeneous + "modules: {images: {data_parallel_size: 1}, "
                       "language: {data_parallel_size: 1, rank_offset: 2}}",
       3, "modules.language.rank_offset",
       "rank_offset ranges must tile the distributed world with no gaps: "
       "module 'language' expected start 1, actual start 2; ranks 1 do not "
       "participate in any module"},
      {heterogeneous + "modules: {images: {data_parallel_size: 4}, "
                       "language: {data_parallel_size: 4, rank_offset: 4}}",
       9, "modules.language.rank_offset",
       "MIMO world size mismatch: expected 8, got 9; rank_offset ranges must "
       "tile the distributed world with no gaps: covered ranks [0, 8), "
       "world_size is 9"},
      {heterogeneous + "modules: {images: {data_parallel_size: 4, "
                       "expert_model_parallel_size: 2}, "
                       "language: {data_parallel_size: 4, rank_offset: 4}}",
       8, "modules.images.expert_model_parallel_size",
       "Encoder modules must remain dense for MegatronMIMO MoE, module "
       "'images' has EP=2, ETP=1"},
      {heterogeneous + strict +
           "modules: {images: {data_parallel_size: 1}, language: "
           "{tensor_model_parallel_size: 3, data_parallel_size: 1, "
           "rank_offset: 1}}",
       4, "modules.language.tensor_model_parallel_size",
       "Module 'language' has TP=3, but TP size must be a power of 2"},
      {heterogeneous + strict +
           "modules: {images: {data_parallel_size: 3}, "
           "language: {data_parallel_size: 2, rank_offset: 3}}",
       5, "modules.language.data_parallel_size",
       "DP sizes must be divisible between modules, 'images' has DP=3 and "
       "'language' DP=2"},
      {heterogeneous + strict +
           "modules: {images: {data_parallel_size: 1, "
           "context_parallel_size: 2}, "
           "language: {data_parallel_size: 1, rank_offset: 2}}",
       3, "modules.images.context_parallel_size", "CP must be 1"},
      {heterogeneous + strict +
           "modules: {images: {data_parallel_size: 1, "
           "pipeline_model_parallel_size: 2}, "
           "language: {data_parallel_size: 1, rank_offset: 2}}",
       3, "modules.images.pipeline_model_parallel_size",
       "PP of an encoder must be 1"},
      // Shared ranks.
      {"modules: {language: {}, images: {tensor_model_parallel_size: 2}}", 2,
       "modules.images.tensor_model_parallel_size",
       "all sizes must be equal across modules in homogeneous deployment"},
      {"modules: {language: {}, images: {rank_offset: 1}}", 1,
       "modules.images.rank_offset",
       "rank_offset must be 0 in homogeneous deployment"},
      {colocated + "modules: {language: {}, images: {rank_offset: 1}}", 1,
       "modules.images.rank_offset",
       "rank_offset must be 0 in colocated deployment"},
      {colocated +
           "modules: {language: {}, images: {pipeline_model_parallel_size: 2}}",
       2, "modules.images.pipeline_model_parallel_size",
       "pipeline_model_parallel_size must be 1 in colocated deployment"},
      {colocated + strict +
           "modules: {language: {pipeline_model_parallel_size: 2}, images: {}}",
       2, "modules.language.pipeline_model_parallel_size",
       "pipeline_model_parallel_size must be 1 in colocated deployment"},
      {colocated + "modules: {language: {data_parallel_size: 2}, "
                   "images: {data_parallel_size: 1}}",
       2, "modules.images.data_parallel_size",
       "total_ranks must be equal across modules in colocated deployment"},
      {"modules: {language: {data_parallel_size: 2}, "
       "images: {data_parallel_size: 2}}",
       4, "", "MIMO world size mismatch: expected 2, got 4"},
  };
  for (const char* size :
       {"tensor_model_parallel_size", "pipeline_model_parallel_size",
        "context_parallel_size", "expert_model_parallel_size",
        "expert_tensor_parallel_size"}) {
    cases.push_back(
        {absl::StrCat("modules: {language: {}, images: {", size, ": 0}}"), 1,
         absl::StrCat("modules.images.", size),
         absl::StrCat(size, " must be positive")});
  }
  for (const Case& c : cases) {
    const Words words = PlanWords(Config(c.parallelism), c.world);
    Expect(words, {absl::StrCat("mimo: ", In("f.yaml"), ": parallelism.", c.key,
                                c.key.empty() ? "" : ": "),
                   c.words});
  }
  Expect(PlanWords(Config("modules: {language: {data_parallel_size: 2}, "
                          "images: {data_parallel_size: 8, rank_offset: 2}}, "
                          "deployment_mode: heterogeneous",
                          3, 30),
                   10),
         {In("f.yaml") + ": parallelism.modules.images.data_parallel_size: 8, "
                         "must divide micro_batch_size 3 * DP 2"});
  Expect(PlanWords(Config("", 2, 6), 2),
         {"parallelism.modules.language.data_parallel_size: 2 * "
          "micro_batch_size 2 must divide global_batch_size 6"});
  Expect(PlanWords(Config("modlues: {}"), 1),
         {"parallelism.modlues", "did you mean parallelism.modules?"});
  Expect(PlanWords(Config("deployment_mode: mixed"), 1),
         {"parallelism.deployment_mode: \"mixed\"", "colocated"});
  Expect(PlanWords(Config(""), 3000000), {"global_batch_size 1"});
  for (const char* world : {"0", "-1", "3000000000", "many"}) {
    Expect({"plan", "--config", In("f.yaml"), "--world", world}, {world});
  }
}

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

TEST_F(PlanTest, AHundredThousandRanks) {
  const json plan = Plan(
      Config("deployment_mode: heterogeneous, modules: {language: "
             "{tensor_model_parallel_size: 4, pipeline_model_parallel_size: 4, "
             "context_parallel_size: 2, data_parallel_size: 2500}, images: "
             "{data_parallel_size: 20000, rank_offset: 80000}}",
             8, 40000),
      100000);
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
