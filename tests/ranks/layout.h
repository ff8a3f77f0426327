// Layouts of two modules, and pictures with questions to train them on.
#ifndef MIMO_TESTS_RANKS_LAYOUT_H_
#define MIMO_TESTS_RANKS_LAYOUT_H_

#include <algorithm>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/substitute.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {

inline constexpr int kSamples = 12;  // of a global micro-batch

// The sizes of a module: "tp2 pp2 dp2 @4 sp".
inline std::string ModuleYaml(const std::string& text) {
  const std::map<std::string, std::string> keys = {
      {"tp", "tensor_model_parallel_size"},
      {"pp", "pipeline_model_parallel_size"},
      {"cp", "context_parallel_size"},
      {"dp", "data_parallel_size"},
      {"@", "rank_offset"},
      {"sp", "sequence_parallel"}};
  std::string yaml;
  for (const std::string& word :
       std::vector<std::string>(absl::StrSplit(text, ' '))) {
    const size_t digits =
        std::min(word.find_first_of("0123456789"), word.size());
    absl::StrAppend(&yaml, yaml.empty() ? "{" : ", ",
                    keys.at(word.substr(0, digits)), ": ",
                    word == "sp" ? "true" : word.substr(digits));
  }
  return yaml + "}";
}

// The number behind `key` in a module's sizes; 1 if it is not there.
inline int SizeIn(const std::string& text, const std::string& key) {
  for (const std::string& word :
       std::vector<std::string>(absl::StrSplit(text, ' '))) {
    int size;
    if (absl::StartsWith(word, key) &&
        absl::SimpleAtoi(word.substr(key.size()), &size))
      return size;
  }
  return 1;
}
inline int Dp(const std::string& text) { return SizeIn(text, "dp"); }

struct Layout {
  std::string mode;
  int ranks;
  std::string images, language;
  bool idle = false;  // some ranks are in neither

  std::string Yaml() const {
    return absl::Substitute(
        "parallelism: {deployment_mode: $0, allow_idle_ranks: $1, modules: "
        "{images: $2, language: $3}}\n",
        mode, idle, ModuleYaml(images), ModuleYaml(language));
  }
};

inline const Layout kOneRank = {"homogeneous", 1, "dp1", "dp1"};

// Samples with these numbers of pictures, in turn.
inline void WriteSamples(const std::string& path,
                         const std::vector<int>& pictures_of = {0, 1, 3}) {
  const std::vector<std::string> names = {"red_apple", "dog_face", "rocket",
                                          "bicycle", "house"};
  std::string lines;
  for (int i = 0; i < 30; ++i) {
    const int pictures = pictures_of[i % pictures_of.size()];
    nlohmann::json sample = {{"id", absl::StrCat(i)}};
    std::string question;
    for (int k = 0; k < pictures; ++k) {
      const std::string& name = names[(i + 2 * k) % names.size()];
      sample["image"].push_back("images/" + name + ".png");
      question += "<image>\n";
    }
    const std::string& last = names[i % names.size()];
    absl::StrAppend(&question, "What is number ", i, "?");
    sample["conversations"] = {{{"from", "human"}, {"value", question}},
                               {{"from", "gpt"}, {"value", last}}};
    lines += sample.dump() + "\n";
  }
  Write(path, lines);
}

// Layers for four stages, heads for four tp ranks, two groups of them.
inline constexpr char kLlava[] = R"(
model:
  type: llava
  language: {num_layers: 4, hidden_size: 32, ffn_hidden_size: 48,
             num_attention_heads: 4, num_query_groups: 2, vocab_size: 400,
             max_sequence_length: 96}
  vision: {num_layers: 3, hidden_size: 24, ffn_hidden_size: 40,
           num_attention_heads: 4, image_size: 16, patch_size: 8,
           feature_layer: -1, position_embedding_std: 0.5}
)";

// Of a LLaVA or of a model of images.
inline const std::vector<std::string>& FrozenParts() {
  static const auto& parts = *new std::vector<std::string>{
      "",
      "  freeze_modality_encoders: {images: true}",
      "  freeze_language_model: true",
      "  freeze_modality_encoders: {images: true}\n"
      "  freeze_modality_projections: {images: true}",
      "  freeze_modality_encoders: {images: true}\n"
      "  freeze_language_model: true",
      "  freeze_modality_projections: {images: true}"};
  return parts;
}

// Of pictures, of different sizes, each with its projection.
inline constexpr char kTwoEncoders[] = R"(
model:
  type: mimo
  language: {module: gpt, num_layers: 4, hidden_size: 32, ffn_hidden_size: 48,
             num_attention_heads: 4, num_query_groups: 2, vocab_size: 400,
             max_sequence_length: 96}
  modalities:
    images:
      encoders:
        clip: {module: clip_vit, num_layers: 3, hidden_size: 24,
               ffn_hidden_size: 40, num_attention_heads: 4, image_size: 16,
               patch_size: 8, feature_layer: -1, position_embedding_std: 0.5}
        wide: {module: clip_vit, num_layers: 5, hidden_size: 32,
               ffn_hidden_size: 40, num_attention_heads: 4, image_size: 16,
               patch_size: 8, feature_select_strategy: full,
               position_embedding_std: 0.5}
      input_projections:
        - {module: projector, input_size: 24, output_size: 32}
        - {module: projector, input_size: 32, output_size: 32}
)";

inline constexpr char kLayoutConfig[] = R"(
  special_token_ids: {images: 4}
$0
data: {type: llava_json, path: $1/samples.jsonl, image_root: tests/fixtures,
       tokenizer_vocab_size: 320}
train: {train_iters: 20, micro_batch_size: $2, global_batch_size: $3, seed: 7,
        check_replicas_interval: 10}
optimizer: {lr: 2.0e-3, min_lr: 1.0e-4, lr_warmup_iters: 2, lr_decay_iters: 20,
            weight_decay: 0.1, clip_grad: 1.0}
checkpoint: {save: $1/save}
logging: {metrics: $1/metrics.jsonl, progress: false}
)";

// Writes samples and config of a run of `model` in `folder`, of `micro_batches`
// global micro-batches an iteration, and `more` lines of the model's; what
// `mimo` wants to hear.
inline std::vector<std::string> LayoutRun(const std::string& folder,
                                          const Layout& layout,
                                          int micro_batches,
                                          const std::string& more = "",
                                          const std::string& model = kLlava) {
  WriteSamples(folder + "/samples.jsonl");
  const std::string config = absl::Substitute(kLayoutConfig, more, folder,
                                              kSamples / Dp(layout.language),
                                              kSamples * micro_batches);
  return {"train", "--config",
          Write(folder + "/config.yaml", model + config + layout.Yaml())};
}

inline Trained TrainOn(const std::string& folder, const Layout& layout,
                       int micro_batches, const std::string& frozen = "",
                       const Words& overrides = {},
                       const char* model = kLlava) {
  Words words = LayoutRun(folder, layout, micro_batches, frozen, model);
  words.insert(words.end(), overrides.begin(), overrides.end());
  return Train(words, layout.ranks, folder);
}

// Nightly: whatever is too long for every change, and fresh random layouts.
inline bool All() { return std::string(std::getenv("MIMO_LAYOUTS")) == "all"; }
// Of what is random: always the same, or each time another.
inline int Seed() {
  return All() ? static_cast<int>(std::random_device{}()) : 20261128;
}

inline int Pick(std::mt19937& bits, const std::vector<int>& from) {
  return from[std::uniform_int_distribution<size_t>(0, from.size() - 1)(bits)];
}

struct Sizes {
  int tp, pp, cp, dp;
  bool sp;  // sequence parallel
  int ranks() const { return tp * pp * cp * dp; }
  bool operator==(const Sizes&) const = default;
  std::string Text(int offset = 0) const {
    return absl::StrCat("tp", tp, " pp", pp, " cp", cp, " dp", dp,
                        offset > 0 ? absl::StrCat(" @", offset) : "",
                        sp ? " sp" : "");
  }
};

// One that the provider accepts, of at most 8 ranks. Spans of heterogeneous
// ones follow each other in either order, or overlap in part; a rank may idle.
inline Layout RandomLayout(std::mt19937& bits) {
  while (true) {
    const auto draw = [&](int stages) {
      Sizes sizes = {Pick(bits, {1, 1, 2, 4}),
                     stages == 1 ? 1 : Pick(bits, {1, 1, 2, stages}),
                     Pick(bits, {1, 1, 1, 2, 4}), Pick(bits, {1, 1, 2, 3, 4})};
      sizes.sp = sizes.tp > 1 && Pick(bits, {0, 1}) == 1;
      return sizes;
    };
    const int mode = Pick(bits, {0, 1, 2, 2});
    const Sizes language = draw(mode == 0 ? 3 : 4);
    const Sizes images = mode == 0 ? language : draw(mode == 1 ? 1 : 3);
    if (kSamples % (images.dp * images.cp) != 0) continue;
    const int most = std::max(language.ranks(), images.ranks());
    if (mode < 2) {
      if (most > 8 || language.ranks() != images.ranks()) continue;
      return {mode == 0 ? "homogeneous" : "colocated", most, images.Text(),
              language.Text()};
    }
    const int apart = language.ranks() + images.ranks();
    const bool language_first = Pick(bits, {0, 1}) == 1;
    const int second = language_first ? images.ranks() : language.ranks();
    const int world = Pick(bits, {apart, apart, std::max(most, apart - 1)});
    if (world > 8) continue;
    const int ranks = std::min(8, world + Pick(bits, {0, 0, 1}));
    return {"heterogeneous", ranks,
            images.Text(language_first ? world - second : 0),
            language.Text(language_first ? 0 : world - second),
            /*idle=*/ranks > world};
  }
}

}  // namespace mimo

#endif  // MIMO_TESTS_RANKS_LAYOUT_H_
