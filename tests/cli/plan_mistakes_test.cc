// mimo plan: every mistake of a layout by its words.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/cli/plan_testing.h"

namespace mimo {
namespace {

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
      {strict + "modules: {language: {expert_model_parallel_size: 2}, "
                "images: {expert_model_parallel_size: 2}}",
       2, "modules.images.expert_model_parallel_size",
       "Encoder modules must remain dense for MegatronMIMO MoE"},
      // Of the topology.
      {"modules: {}, topology: {images: [language], language: [images]}", 1,
       "topology", "cycle images -> language -> images, wanted none"},
      {"modules: {}, topology: {images: [language]}", 1, "topology",
       "no module 'language', wanted all of [language, images]"},
      {"modules: {}, topology: {images: [audios], language: []}", 1, "topology",
       "'images' sends to 'audios', wanted one of [language, images]"},
      {"modules: {}, module_output_ndim: {images: 4}", 1,
       "module_output_ndim.images", "4, wanted 2 or 3 of one of [language"},
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
  // An error that an override makes elsewhere is in the file's section.
  Words overridden = PlanWords("model: {type: llava}", 2);
  overridden.push_back("parallelism.deployment_mode=heterogeneous");
  Expect(overridden, {absl::StrCat("mimo: ", In("f.yaml"),
                                   ": parallelism.modules: Language module")});
  overridden.back() = "parallelism={modules: {language: {rank_offset: -1}}}";
  Expect(overridden,
         {absl::StrCat("mimo: ", In("f.yaml"), " with ", overridden.back(),
                       ": parallelism.modules")});
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

// Of ranks that have no part of each other's modules, too.
TEST_F(PlanTest, RowsOfAnotherWidth) {
  const Words plan = PlanWords(R"(
model:
  type: mimo
  language: {module: gpt, num_layers: 1, hidden_size: 32, ffn_hidden_size: 48,
             num_attention_heads: 4, vocab_size: 400, max_sequence_length: 96}
  modalities:
    images:
      encoders: {vit: {module: clip_vit, num_layers: 2, hidden_size: 16,
                       ffn_hidden_size: 40, num_attention_heads: 2,
                       image_size: 16, patch_size: 8}}
  special_token_ids: {images: 4}
parallelism:
  deployment_mode: heterogeneous
  modules: {images: {data_parallel_size: 1},
            language: {data_parallel_size: 1, rank_offset: 1}}
data: {type: mock}
train: {micro_batch_size: 1, global_batch_size: 1, train_iters: 1}
)",
                               2);
  const Words train = {"train", "--config", In("f.yaml"), "--ranks", "2"};
  for (const Words& words : {plan, train}) {
    Expect(words, {"mimo: " + In("f.yaml") +
                   ": model: images embeddings of 16 columns, wanted 32, the "
                   "language model's hidden_size"});
  }
}

}  // namespace
}  // namespace mimo
