#include "models/hf/names.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace mimo {
namespace {

// The table, filled row by row.
class Table {
 public:
  // The same shape on both sides.
  void Same(std::string ours, std::string theirs, Shape shape) {
    Reshaped(std::move(ours), shape, std::move(theirs), shape);
  }
  void Reshaped(std::string ours, Shape shape, std::string theirs,
                Shape their_shape) {
    rows.push_back({std::move(ours),
                    std::move(shape),
                    {{std::move(theirs), std::move(their_shape), 0}}});
  }
  // Parts {name, rows} one after the other; `tail` follows the rows.
  void Joined(std::string ours, const std::string& prefix,
              const std::vector<std::pair<std::string, int64_t>>& parts,
              const std::string& suffix, const Shape& tail) {
    HfParameter parameter;
    int64_t row = 0;
    auto shape = [&](int64_t n) {
      Shape shape = {n};
      shape.insert(shape.end(), tail.begin(), tail.end());
      return shape;
    };
    for (const auto& [name, n] : parts) {
      parameter.tensors.push_back(
          {absl::StrCat(prefix, name, suffix), shape(n), row});
      row += n;
    }
    parameter.name = std::move(ours);
    parameter.shape = shape(row);
    rows.push_back(std::move(parameter));
  }
  // A layer norm.
  void Norm(const std::string& ours, const std::string& theirs, int64_t size) {
    Same(ours + ".weight", theirs + ".weight", {size});
    Same(ours + ".bias", theirs + ".bias", {size});
  }
  void Linear(const std::string& ours, const std::string& theirs, int64_t out,
              int64_t in, bool bias) {
    Same(ours + ".weight", theirs + ".weight", {out, in});
    if (bias) Same(ours + ".bias", theirs + ".bias", {out});
  }

  std::vector<HfParameter> rows;
};

void AddLanguageModel(const GptConfig& config, Table& table) {
  const int64_t hidden = config.hidden_size, ffn = config.ffn_hidden_size;
  const int64_t q = config.num_attention_heads * config.head_dim();
  const int64_t kv = config.groups() * config.head_dim();
  const std::string ours = "language_model.", theirs = "language_model.model.";
  table.Same(ours + "embedding.weight", kHfEmbedding,
             {config.vocab_size, hidden});
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = absl::StrCat(ours, "layers.", i);
    const std::string hf = absl::StrCat(theirs, "layers.", i);
    table.Same(layer + ".input_norm.weight", hf + ".input_layernorm.weight",
               {hidden});
    table.Joined(layer + ".attention.qkv.weight", hf + ".self_attn.",
                 {{"q_proj", q}, {"k_proj", kv}, {"v_proj", kv}}, ".weight",
                 {hidden});
    table.Linear(layer + ".attention.proj", hf + ".self_attn.o_proj", hidden, q,
                 false);
    table.Same(layer + ".mlp_norm.weight",
               hf + ".post_attention_layernorm.weight", {hidden});
    table.Joined(layer + ".mlp.fc1.weight", hf + ".mlp.",
                 {{"gate_proj", ffn}, {"up_proj", ffn}}, ".weight", {hidden});
    table.Linear(layer + ".mlp.fc2", hf + ".mlp.down_proj", hidden, ffn, false);
  }
  table.Same(ours + "final_norm.weight", theirs + "norm.weight", {hidden});
  if (!config.tie_word_embeddings) {
    table.Same(ours + "head.weight", kHfHead, {config.vocab_size, hidden});
  }
}

void AddVisionTower(const ClipVitConfig& config, Table& table) {
  const int64_t hidden = config.hidden_size, ffn = config.ffn_hidden_size;
  const int64_t channels = config.num_channels, patch = config.patch_size;
  const std::string ours = "modality_submodules.images.encoders.clip_encoder.";
  const std::string theirs = "vision_tower.";
  table.Same(ours + "class_token", theirs + "embeddings.class_embedding",
             {hidden});
  table.Reshaped(ours + "patch_embedding.weight",
                 {hidden, channels * patch * patch},
                 theirs + "embeddings.patch_embedding.weight",
                 {hidden, channels, patch, patch});
  table.Same(ours + "position_embedding.weight",
             theirs + "embeddings.position_embedding.weight",
             {config.patches() + 1, hidden});
  table.Norm(ours + "pre_norm", theirs + "pre_layrnorm", hidden);  // so spelt
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = absl::StrCat(ours, "layers.", i);
    const std::string hf = absl::StrCat(theirs, "encoder.layers.", i);
    table.Norm(layer + ".input_norm", hf + ".layer_norm1", hidden);
    const std::vector<std::pair<std::string, int64_t>> qkv = {
        {"q_proj", hidden}, {"k_proj", hidden}, {"v_proj", hidden}};
    table.Joined(layer + ".attention.qkv.weight", hf + ".self_attn.", qkv,
                 ".weight", {hidden});
    table.Joined(layer + ".attention.qkv.bias", hf + ".self_attn.", qkv,
                 ".bias", {});
    table.Linear(layer + ".attention.proj", hf + ".self_attn.out_proj", hidden,
                 hidden, true);
    table.Norm(layer + ".mlp_norm", hf + ".layer_norm2", hidden);
    table.Linear(layer + ".mlp.fc1", hf + ".mlp.fc1", ffn, hidden, true);
    table.Linear(layer + ".mlp.fc2", hf + ".mlp.fc2", hidden, ffn, true);
  }
  table.Norm(ours + "post_norm", theirs + "post_layernorm", hidden);
}

}  // namespace

std::vector<HfParameter> HfParameters(const LlavaConfig& config) {
  Table table;
  AddLanguageModel(config.language, table);
  AddVisionTower(config.vision, table);
  const std::string ours = "modality_submodules.images.input_projections.0.";
  const std::string theirs = "multi_modal_projector.";
  const int64_t hidden = config.language.hidden_size;
  const ProjectorConfig& projector = config.projector;
  const bool affine = projector.type == ProjectorType::kAffine;
  const int64_t ffn = affine || projector.ffn_hidden_size == 0
                          ? hidden
                          : projector.ffn_hidden_size;
  table.Linear(ours + "fc1", theirs + "linear_1", ffn,
               config.vision.hidden_size, projector.bias);
  if (!affine) {
    table.Linear(ours + "fc2", theirs + "linear_2", hidden, ffn,
                 projector.bias);
  }
  return std::move(table.rows);
}

std::string CanonicalHfName(absl::string_view name) {
  absl::string_view inner = name;
  if (absl::ConsumePrefix(&inner, "model.") &&
      (absl::StartsWith(inner, "language_model.") ||
       absl::StartsWith(inner, "vision_tower.") ||
       absl::StartsWith(inner, "multi_modal_projector."))) {
    name = inner;
  }
  if (absl::StartsWith(name, "lm_head.")) {
    return absl::StrCat("language_model.", name);
  }
  if (absl::ConsumePrefix(&name, "vision_tower.vision_model.")) {
    return absl::StrCat("vision_tower.", name);
  }
  if (absl::ConsumePrefix(&name, "language_model.")) {
    const bool nested =
        absl::StartsWith(name, "model.") || absl::StartsWith(name, "lm_head.");
    return absl::StrCat("language_model.", nested ? "" : "model.", name);
  }
  return std::string(name);
}

bool IsHfBuffer(absl::string_view name) {
  return absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         absl::EndsWith(name, ".position_ids");
}

}  // namespace mimo
