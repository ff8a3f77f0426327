#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/log/check.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/checkpoint/safetensors.h"
#include "mimo/data/file.h"
#include "models/hf/checkpoint.h"
#include "models/hf/llava_config.h"
#include "models/hf/names.h"
#include "models/hf/testing.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;

TEST(HfCheckpoint, Shards) {
  const std::string source = UnpackGolden("llava15_tiny");
  const auto config = ReadHfLlavaConfig(source);
  const auto tensors = LoadHfTensors(source, allocator());
  const std::string out = testing::TempDir() + "/sharded";
  fs::remove_all(out);
  // A single file from before must not win over the new shards.
  ASSERT_TRUE(SaveHfCheckpoint(out, *config, *tensors).ok());
  HfSaveOptions options;
  options.max_shard_bytes = 200000;
  ASSERT_TRUE(SaveHfCheckpoint(out, *config, *tensors, options).ok());
  EXPECT_FALSE(fs::exists(out + "/model.safetensors"));
  int shards = 0;
  for (const auto& entry : fs::directory_iterator(out)) {
    EXPECT_FALSE(absl::StartsWith(entry.path().filename().string(), ".tmp"));
    if (entry.path().extension() != ".safetensors") continue;
    ++shards;
    EXPECT_LT(entry.file_size(), 200000 + 10000);  // and its header
  }
  EXPECT_GE(shards, 4);
  Model single(*config), sharded(*config);
  ASSERT_TRUE(LoadHfParameters(source, single.list).ok());
  const absl::Status status = LoadHfParameters(out, sharded.list);
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < single.list.size(); ++i) {
    EXPECT_TRUE(SameBytes(single.list[i]->data, sharded.list[i]->data));
  }

  // What may be wrong with an index.
  const std::string index = out + "/model.safetensors.index.json";
  const std::string text = *ReadFile(index);
  auto error = [&] {
    return std::string(LoadHfParameters(out, sharded.list).message());
  };
  const std::string second = absl::StrCat("model-00002-of-0000", shards);
  fs::rename(out + "/" + second + ".safetensors", out + "/gone");
  EXPECT_EQ(error(), index + ": no file " + second + ".safetensors");
  fs::rename(out + "/gone", out + "/" + second + ".safetensors");
  auto json = nlohmann::json::parse(text);
  json["weight_map"]["a.b"] = second + ".safetensors";
  json["weight_map"]["a.c"] = second + ".safetensors";
  std::ofstream(index) << json.dump();
  EXPECT_EQ(error(),
            absl::StrCat(index, ": no a.b in ", second,
                         ".safetensors; no a.c in ", second, ".safetensors"));
  json["weight_map"] = {{"a.b", "../x.safetensors"}};
  std::ofstream(index) << json.dump();
  EXPECT_EQ(error(), index +
                         ": weight_map.a.b: \"../x.safetensors\", wanted a "
                         "file's name");
  std::ofstream(index) << "{}";
  EXPECT_EQ(error(),
            index + ": weight_map: nothing, wanted tensors and their files");
  std::ofstream(index) << text.substr(0, 50);
  EXPECT_EQ(error(), index + ": not JSON, wanted an object");
  fs::remove(index);
  EXPECT_EQ(error(), out +
                         ": no weights, wanted model.safetensors or "
                         "model.safetensors.index.json");
}

TEST(HfCheckpoint, AllThatDoesNotFitIsListed) {
  const std::string folder = Variant("llava15_tiny", "_bad", [](TensorMap& t) {
    t.erase("language_model.model.norm.weight");
    t.erase("language_model.model.layers.1.self_attn.v_proj.weight");
    t["multi_modal_projector.linear_1.bias"] =
        Tensor::Zeros(allocator(), {65}, DType::kFloat32);
    t["something.else"] = Tensor::Zeros(allocator(), {}, DType::kFloat32);
  });
  const auto config = ReadHfLlavaConfig(folder);
  Model model(*config);
  model.list[0]->name = "language_model.other";
  const std::string wanted =
      "language_model.model.layers.1.self_attn.v_proj.weight is missing; "
      "language_model.model.norm.weight is missing; "
      "multi_modal_projector.linear_1.bias is [65], wanted [64]; "
      "something.else is not wanted";
  EXPECT_EQ(LoadHfParameters(folder, model.list).message(),
            folder +
                ": language_model.other is missing in its config.json's "
                "model; " +
                wanted);
  EXPECT_TRUE(std::isnan(model.list[1]->data.span<float>()[0]));
  EXPECT_EQ(LoadHfTensors(folder, allocator()).status().message(),
            folder + ": " + wanted);

  const std::string twice = Variant("llava15_tiny", "_twice", [](TensorMap& t) {
    t["lm_head.weight"] = t.at(kHfHead);
  });
  EXPECT_EQ(LoadHfTensors(twice, allocator()).status().message(),
            twice +
                "/model.safetensors: language_model.lm_head.weight and "
                "lm_head.weight are both language_model.lm_head.weight, wanted "
                "one");
}

TEST(HfCheckpoint, SaveErrorsLeaveNothing) {
  const std::string source = UnpackGolden("llava15_tiny");
  const auto config = ReadHfLlavaConfig(source);
  auto tensors = *LoadHfTensors(source, allocator());
  const std::string out = testing::TempDir() + "/failed";
  fs::remove_all(out);
  tensors["extra"] = tensors.at("language_model.final_norm.weight");
  tensors.erase("language_model.head.weight");
  tensors["language_model.final_norm.weight"] =
      Tensor::Zeros(allocator(), {3}, DType::kFloat32);
  EXPECT_EQ(SaveHfCheckpoint(out, *config, tensors).message(),
            "model: language_model.final_norm.weight is [3], wanted [64]; "
            "language_model.head.weight is missing; extra is not wanted");
  EXPECT_FALSE(fs::exists(out));

  tensors = *LoadHfTensors(source, allocator());
  std::ofstream(testing::TempDir() + "/file") << "x";
  EXPECT_EQ(
      SaveHfCheckpoint(testing::TempDir() + "/file/below", *config, tensors)
          .code(),
      absl::StatusCode::kInvalidArgument);
  // A folder in the way of a file.
  fs::create_directories(out + "/config.json/x");
  EXPECT_EQ(SaveHfCheckpoint(out, *config, tensors).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(fs::exists(out + "/.tmp_export"));
}

TEST(HfLayout, BadTextIsAnError) {
  for (const char* text :
       {"", "[]", "{\"a\": 1}", "{\"a\": [\"b\"]}", "{\"a\": [\"b\", \"X\"]}",
        "{\"a\": [\"\", \"F32\"]}"}) {
    EXPECT_FALSE(HfLayout::FromText(text).ok()) << text;
  }
}

}  // namespace
}  // namespace mimo
