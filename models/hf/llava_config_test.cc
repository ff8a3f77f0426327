#include "models/hf/llava_config.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/config/fields.h"
#include "models/hf/testing.h"

namespace mimo {
namespace {

using Json = nlohmann::ordered_json;

std::string Folder() {
  const std::string folder = testing::TempDir() + "/config";
  std::filesystem::create_directories(folder);
  return folder;
}

absl::StatusOr<LlavaConfig> Read(const std::string& json) {
  std::ofstream(Folder() + "/config.json") << json;
  return ReadHfLlavaConfig(Folder());
}

// What the tests change one key of.
Json Plain() {
  return Json::parse(R"({"model_type": "llava", "text_config": {},
                         "vision_config": {}})");
}

std::string ErrorOf(const Json& json) {
  const auto config = Read(json.dump());
  EXPECT_FALSE(config.ok()) << json;
  const std::string message(config.status().message());
  const std::string file = Folder() + "/config.json: ";
  EXPECT_EQ(message.substr(0, file.size()), file);
  return message.substr(std::min(file.size(), message.size()));
}

TEST(HfLlavaConfig, Goldens) {
  const auto tied = ReadHfLlavaConfig(UnpackGolden("llava_gqa_tied"));
  ASSERT_TRUE(tied.ok()) << tied.status();
  EXPECT_EQ(tied->language.num_layers, 3);
  EXPECT_EQ(tied->language.hidden_size, 64);
  EXPECT_EQ(tied->language.ffn_hidden_size, 172);
  EXPECT_EQ(tied->language.num_attention_heads, 8);
  EXPECT_EQ(tied->language.groups(), 2);
  EXPECT_EQ(tied->language.head_dim(), 8);
  EXPECT_EQ(tied->language.vocab_size, 128);
  EXPECT_EQ(tied->language.max_sequence_length, 512);
  EXPECT_EQ(tied->language.rotary_base, 500000);
  EXPECT_EQ(tied->language.norm_epsilon, 1e-5);
  EXPECT_TRUE(tied->language.tie_word_embeddings);
  EXPECT_EQ(tied->special_token_ids,
            (std::map<std::string, int64_t>{{"images", 127}}));
  const auto full = ReadHfLlavaConfig(UnpackGolden("llava_full_multi"));
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_FALSE(full->language.tie_word_embeddings);
  EXPECT_EQ(full->vision.num_layers, 3);
  EXPECT_EQ(full->vision.hidden_size, 48);
  EXPECT_EQ(full->vision.ffn_hidden_size, 96);
  EXPECT_EQ(full->vision.num_attention_heads, 4);
  EXPECT_EQ(full->vision.image_size, 42);
  EXPECT_EQ(full->vision.patch_size, 14);
  EXPECT_EQ(full->vision.feature_layer, -1);
  EXPECT_EQ(full->vision.feature_select_strategy, FeatureSelect::kFull);
  EXPECT_EQ(full->vision.activation, Activation::kQuickGelu);
  EXPECT_EQ(full->projector.activation, Activation::kGelu);
  EXPECT_TRUE(full->projector.bias);
}

// The text of llava-hf/llava-1.5-7b-hf leaves out what is Llama's default.
TEST(HfLlavaConfig, DefaultsOfTransformers) {
  const auto bare = Read(R"({"model_type": "llava"})");
  ASSERT_FALSE(bare.ok());  // Llama's vocabulary ends before token 32000
  const auto real = Read(R"({
    "model_type": "llava", "image_token_index": 32000,
    "tie_word_embeddings": false, "pad_token_id": 32001,
    "text_config": {"max_position_embeddings": 4096, "model_type": "llama",
                    "rms_norm_eps": 1e-05, "torch_dtype": "float16",
                    "vocab_size": 32064}})");
  ASSERT_TRUE(real.ok()) << real.status();
  LlavaConfig wanted;  // LLaVA-1.5 7B
  wanted.language.vocab_size = 32064;
  wanted.language.num_query_groups = real->language.num_query_groups;
  EXPECT_TRUE(ConfigEqual(*real, wanted)) << ToYaml(*real);

  Json json = Plain();
  json["image_token_id"] = 7;
  const auto small = Read(json.dump());
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(small->language.vocab_size, 32000);
  EXPECT_EQ(small->language.max_sequence_length, 2048);
  EXPECT_EQ(small->language.norm_epsilon, 1e-6);
  EXPECT_EQ(small->language.groups(), 32);
  EXPECT_EQ(small->vision.num_layers, 12);
  EXPECT_EQ(small->vision.hidden_size, 768);
  EXPECT_EQ(small->vision.ffn_hidden_size, 3072);
  EXPECT_EQ(small->vision.num_attention_heads, 12);
  EXPECT_EQ(small->vision.image_size, 224);
  EXPECT_EQ(small->vision.patch_size, 32);
  EXPECT_EQ(small->special_token_ids.at("images"), 7);
}

TEST(HfLlavaConfig, BothSpellings) {
  Json json = Plain();
  json["image_token_index"] = 5;
  json["tie_word_embeddings"] = true;
  json["text_config"]["rope_theta"] = 1000000;
  json["text_config"]["rope_scaling"] = nullptr;
  json["text_config"]["head_dim"] = 80;
  json["vision_config"]["hidden_act"] = "gelu_new";
  json["projector_hidden_act"] = "linear";
  auto config = Read(json.dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->language.rotary_base, 1000000);
  EXPECT_EQ(config->language.head_dim(), 80);
  EXPECT_TRUE(config->language.tie_word_embeddings);
  EXPECT_EQ(config->vision.activation, Activation::kGeluTanh);
  EXPECT_EQ(config->projector.activation, Activation::kIdentity);
  json["text_config"]["rope_parameters"] = {{"rope_theta", 777.5},
                                            {"rope_type", "default"}};
  json["tie_word_embeddings"] = false;
  json["text_config"]["tie_word_embeddings"] = true;
  config = Read(json.dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->language.rotary_base, 777.5);
  EXPECT_TRUE(config->language.tie_word_embeddings);
}

TEST(HfLlavaConfig, WhatIsNotSupported) {
  const std::vector<std::tuple<const char*, Json, std::string>> cases = {
      {"/model_type", "qwen2_vl", "model_type: \"qwen2_vl\", wanted llava"},
      {"/model_type", nullptr, "model_type: nothing, wanted llava"},
      {"/text_config/model_type", "mistral",
       "text_config.model_type: \"mistral\", wanted llama"},
      {"/vision_config/model_type", "siglip_vision_model",
       "vision_config.model_type: \"siglip_vision_model\", wanted "
       "clip_vision_model"},
      {"/text_config/attention_bias", true,
       "text_config.attention_bias: \"true\", wanted false"},
      {"/text_config/mlp_bias", true,
       "text_config.mlp_bias: \"true\", wanted false"},
      {"/text_config/hidden_act", "gelu",
       "text_config.hidden_act: \"gelu\", wanted silu"},
      {"/text_config/rope_scaling",
       {{"type", "linear"}, {"factor", 2.0}},
       "text_config.rope_scaling.type: \"linear\", wanted default"},
      {"/text_config/rope_parameters",
       {{"rope_type", "llama3"}, {"rope_theta", 5e5}},
       "text_config.rope_parameters.rope_type: \"llama3\", wanted default"},
      {"/text_config/partial_rotary_factor", 0.5,
       "text_config.partial_rotary_factor: 0.5, wanted 1"},
      {"/text_config/hidden_size", "64",
       "text_config.hidden_size: \"64\", wanted a whole number"},
      {"/text_config", 5, "text_config: 5, wanted an object"},
      {"/vision_feature_layer",
       {-2, -5},
       "vision_feature_layer: a list, wanted a whole number"},
      {"/vision_feature_select_strategy", "cls",
       "vision_feature_select_strategy: \"cls\", wanted default | full"},
      {"/projector_hidden_act", "mish",
       "projector_hidden_act: \"mish\", wanted identity | gelu | "
       "gelu_pytorch_tanh | quick_gelu | silu | relu"},
  };
  for (const auto& [key, value, message] : cases) {
    Json json = Plain();
    json["image_token_index"] = 5;
    json[Json::json_pointer(key)] = value;
    EXPECT_EQ(ErrorOf(json), message);
  }
  EXPECT_EQ(ReadHfLlavaConfig(Folder() + "/none").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(Read("{\"model_type\": \"lla").ok());
}

TEST(HfLlavaConfig, SizesThatCannotBe) {
  for (const char* key :
       {"/text_config/num_attention_heads", "/text_config/hidden_size",
        "/vision_config/patch_size", "/vision_config/num_attention_heads"}) {
    Json json = Plain();
    json["image_token_index"] = 5;
    json[Json::json_pointer(key)] = 0;
    EXPECT_NE(ErrorOf(json).find("_config: "), std::string::npos) << key;
  }
  Json json = Plain();
  json["image_token_index"] = 32000;
  EXPECT_NE(ErrorOf(json).find("special_token_ids.images: 32000"),
            std::string::npos);
}

TEST(HfLlavaConfig, WritesWhatItReads) {
  for (const char* name : kGoldens) {
    const auto config = ReadHfLlavaConfig(UnpackGolden(name));
    ASSERT_TRUE(config.ok());
    const auto json = HfLlavaConfigJson(*config, DType::kBFloat16);
    ASSERT_TRUE(json.ok()) << json.status();
    EXPECT_EQ(Json::parse(*json)["dtype"], "bfloat16");
    const auto back = Read(*json);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_TRUE(ConfigEqual(*back, *config)) << *json;
  }
}

TEST(HfLlavaConfig, SizesThatHuggingFaceLacks) {
  auto error = [](const LlavaConfig& config) {
    return std::string(
        HfLlavaConfigJson(config, DType::kFloat32).status().message());
  };
  LlavaConfig config;
  config.projector.ffn_hidden_size = 4096;
  EXPECT_EQ(error(config), "");
  config.projector.ffn_hidden_size = 4097;
  EXPECT_EQ(error(config),
            "projector.ffn_hidden_size: 4097, wanted 4096 in a Hugging Face "
            "LLaVA");
  config.projector = {};
  config.projector.type = ProjectorType::kAffine;
  EXPECT_EQ(error(config),
            "projector.type: affine, wanted mlp in a Hugging Face LLaVA");
  config.projector = {};
  config.special_token_ids["audio"] = 3;
  EXPECT_NE(error(config).find("special_token_ids: "), std::string::npos);
}

}  // namespace
}  // namespace mimo
