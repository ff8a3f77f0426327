#include "models/hf/llava_config.h"

#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/config/fields.h"
#include "mimo/config/json.h"

namespace mimo {
namespace {

// Other names of ours in transformers' ACT2FN.
constexpr std::pair<absl::string_view, Activation> kActivationAliases[] = {
    {"gelu_new", Activation::kGeluTanh},
    {"swish", Activation::kSilu},
    {"linear", Activation::kIdentity},
};

// One object of config.json; the first error stays.
class Section {
 public:
  Section(ConfigNode node, absl::Status& status)
      : node_(std::move(node)), status_(status) {
    if (status_.ok() && !node_.IsNull() &&
        node_.kind != ConfigNode::Kind::kMap) {
      status_ = node_.Error(node_.Describe() + ", wanted an object");
    }
  }

  Section operator[](absl::string_view name) const {
    return Section(node_[name], status_);
  }
  bool Has(absl::string_view name) const { return !node_[name].IsNull(); }

  template <typename T>
  void Read(absl::string_view name, T& out) const {
    if (status_.ok()) status_ = ReadKey(node_, name, out);
  }
  void ReadActivation(absl::string_view name, Activation& out) const {
    for (const auto& [alias, activation] : kActivationAliases) {
      if (node_[name].text == alias) {
        out = activation;
        return;
      }
    }
    Read(name, out);
  }
  // Error when the key is there and says something else than `only`.
  template <typename T>
  void Want(absl::string_view name, T only) const {
    T found = only;
    Read(name, found);
    if (found != only) Refuse(name, absl::StrCat("wanted ", ToText(only)));
  }
  // Places an error of Validate().
  void Check(const absl::Status& valid) const {
    if (status_.ok() && !valid.ok()) status_ = node_.Error(valid.message());
  }
  void Refuse(absl::string_view name, absl::string_view wanted) const {
    if (!status_.ok()) return;
    const ConfigNode node = node_[name];
    status_ = node.Error(absl::StrCat(node.Describe(), ", ", wanted));
  }

 private:
  static std::string ToText(bool value) { return value ? "true" : "false"; }
  static std::string ToText(const std::string& value) { return value; }
  static std::string ToText(double value) { return absl::StrCat(value); }

  ConfigNode node_;
  absl::Status& status_;
};

// transformers 4 writes rope_theta and rope_scaling, 5 rope_parameters.
void ReadRotary(const Section& text, GptConfig& config) {
  text.Read("rope_theta", config.rotary_base);
  text.Want("partial_rotary_factor", 1.0);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    const Section rope = text[name];
    rope.Want("type", std::string("default"));  // its older spelling
    rope.Want("rope_type", std::string("default"));
    rope.Want("partial_rotary_factor", 1.0);
    rope.Read("rope_theta", config.rotary_base);
  }
}

GptConfig ReadLlama(const Section& text) {
  GptConfig config;
  config.vocab_size = 32000;
  config.max_sequence_length = 2048;
  config.norm_epsilon = 1e-6;
  text.Want("model_type", std::string("llama"));
  text.Read("num_hidden_layers", config.num_layers);
  text.Read("hidden_size", config.hidden_size);
  text.Read("intermediate_size", config.ffn_hidden_size);
  text.Read("num_attention_heads", config.num_attention_heads);
  text.Read("num_key_value_heads", config.num_query_groups);
  text.Read("head_dim", config.kv_channels);
  text.Read("vocab_size", config.vocab_size);
  text.Read("max_position_embeddings", config.max_sequence_length);
  text.Read("rms_norm_eps", config.norm_epsilon);
  ReadRotary(text, config);
  Activation activation = Activation::kSilu;
  text.ReadActivation("hidden_act", activation);
  if (activation != Activation::kSilu) text.Refuse("hidden_act", "wanted silu");
  text.Want("attention_bias", false);
  text.Want("mlp_bias", false);
  return config;
}

ClipVitConfig ReadClipVit(const Section& root) {
  ClipVitConfig config;  // LLaVA-1.5's: LlavaConfig's where there is no section
  const Section vision = root["vision_config"];
  if (root.Has("vision_config")) {
    config.num_layers = config.num_attention_heads = 12;
    config.hidden_size = 768;
    config.ffn_hidden_size = 3072;
    config.image_size = 224;
    config.patch_size = 32;
  }
  vision.Want("model_type", std::string("clip_vision_model"));
  vision.Read("num_hidden_layers", config.num_layers);
  vision.Read("hidden_size", config.hidden_size);
  vision.Read("intermediate_size", config.ffn_hidden_size);
  vision.Read("num_attention_heads", config.num_attention_heads);
  vision.Read("num_channels", config.num_channels);
  vision.Read("image_size", config.image_size);
  vision.Read("patch_size", config.patch_size);
  vision.Read("layer_norm_eps", config.norm_epsilon);
  vision.ReadActivation("hidden_act", config.activation);
  root.Read("vision_feature_layer", config.feature_layer);
  root.Read("vision_feature_select_strategy", config.feature_select_strategy);
  return config;
}

std::string ActivationName(Activation activation) {
  if (activation == Activation::kIdentity) return "linear";
  return ToNode(activation).text;
}

}  // namespace

absl::StatusOr<LlavaConfig> ReadHfLlavaConfig(const std::string& folder) {
  MIMO_ASSIGN_OR_RETURN(ConfigNode node, LoadJson(folder + "/config.json"));
  absl::Status status;
  const Section root(std::move(node), status);
  if (!root.Has("model_type")) root.Refuse("model_type", "wanted llava");
  root.Want("model_type", std::string("llava"));

  LlavaConfig config;
  config.language = ReadLlama(root["text_config"]);
  // transformers 4 looks at the language model's flag, 5 at the whole model's.
  root["text_config"].Read("tie_word_embeddings",
                           config.language.tie_word_embeddings);
  bool tie_all = false;
  root.Read("tie_word_embeddings", tie_all);
  config.language.tie_word_embeddings |= tie_all;
  config.vision = ReadClipVit(root);
  root.ReadActivation("projector_hidden_act", config.projector.activation);
  root.Read("multimodal_projector_bias", config.projector.bias);
  int64_t& image_token = config.special_token_ids["images"];
  root.Read("image_token_index", image_token);
  root.Read("image_token_id", image_token);
  root["text_config"].Check(config.language.Validate());
  root["vision_config"].Check(config.vision.Validate());
  root.Check(config.Validate());
  MIMO_RETURN_IF_ERROR(status);
  return config;
}

absl::StatusOr<std::string> HfLlavaConfigJson(const LlavaConfig& config,
                                              DType dtype) {
  const GptConfig& language = config.language;
  const ClipVitConfig& vision = config.vision;
  const ProjectorConfig& projector = config.projector;
  const auto token = config.special_token_ids.find("images");
  if (config.special_token_ids.size() != 1 ||
      token == config.special_token_ids.end()) {
    return absl::InvalidArgumentError(
        "special_token_ids: other modalities than images, wanted images alone "
        "in a Hugging Face LLaVA");
  }
  if (projector.type != ProjectorType::kMlp) {
    return absl::InvalidArgumentError(
        absl::StrCat("projector.type: ", ToNode(projector.type).text,
                     ", wanted mlp in a Hugging Face LLaVA"));
  }
  for (const auto& [name, found, wanted] :
       {std::tuple("input_size", projector.input_size, vision.hidden_size),
        {"ffn_hidden_size", projector.ffn_hidden_size, language.hidden_size},
        {"output_size", projector.output_size, language.hidden_size}}) {
    if (found != 0 && found != wanted) {
      return absl::InvalidArgumentError(
          absl::StrCat("projector.", name, ": ", found, ", wanted ", wanted,
                       " in a Hugging Face LLaVA"));
    }
  }
  using Json = nlohmann::ordered_json;
  const Json text = {
      {"attention_bias", false},
      {"head_dim", language.head_dim()},
      {"hidden_act", "silu"},
      {"hidden_size", language.hidden_size},
      {"intermediate_size", language.ffn_hidden_size},
      {"max_position_embeddings", language.max_sequence_length},
      {"mlp_bias", false},
      {"model_type", "llama"},
      {"num_attention_heads", language.num_attention_heads},
      {"num_hidden_layers", language.num_layers},
      {"num_key_value_heads", language.groups()},
      {"rms_norm_eps", language.norm_epsilon},
      {"rope_parameters",
       {{"rope_theta", language.rotary_base}, {"rope_type", "default"}}},
      {"rope_theta", language.rotary_base},  // for transformers 4
      {"tie_word_embeddings", language.tie_word_embeddings},
      {"vocab_size", language.vocab_size},
  };
  const Json clip = {
      {"hidden_act", ActivationName(vision.activation)},
      {"hidden_size", vision.hidden_size},
      {"image_size", vision.image_size},
      {"intermediate_size", vision.ffn_hidden_size},
      {"layer_norm_eps", vision.norm_epsilon},
      {"model_type", "clip_vision_model"},
      {"num_attention_heads", vision.num_attention_heads},
      {"num_channels", vision.num_channels},
      {"num_hidden_layers", vision.num_layers},
      {"patch_size", vision.patch_size},
  };
  const Json root = {
      {"architectures", {"LlavaForConditionalGeneration"}},
      {"dtype", std::string(Name(dtype))},
      {"image_seq_length", vision.features()},
      {"image_token_index", token->second},
      {"model_type", "llava"},
      {"multimodal_projector_bias", projector.bias},
      {"projector_hidden_act", ActivationName(projector.activation)},
      {"text_config", text},
      {"tie_word_embeddings", language.tie_word_embeddings},
      {"vision_config", clip},
      {"vision_feature_layer", vision.feature_layer},
      {"vision_feature_select_strategy",
       ToNode(vision.feature_select_strategy).text},
  };
  return root.dump(2) + "\n";
}

}  // namespace mimo
