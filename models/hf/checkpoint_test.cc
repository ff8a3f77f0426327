#include "models/hf/checkpoint.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/log/check.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/checkpoint/safetensors.h"
#include "mimo/data/file.h"
#include "models/hf/llava_config.h"
#include "models/hf/names.h"
#include "models/hf/testing.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;

constexpr char kVision[] = "modality_submodules.images.encoders.clip_encoder.";
constexpr char kProjection[] =
    "modality_submodules.images.input_projections.0.";

Allocator& allocator() {
  static Allocator* allocator = new Allocator;
  return *allocator;
}

// The parameters of a model, all NaN.
struct Model {
  explicit Model(const LlavaConfig& config) {
    for (const HfParameter& row : HfParameters(config)) {
      auto parameter = std::make_unique<Parameter>();
      parameter->name = row.name;
      parameter->data = Tensor(allocator(), row.shape, DType::kFloat32);
      for (float& x : parameter->data.span<float>()) x = NAN;
      parameter->main_grad = Tensor(allocator(), row.shape, DType::kFloat32);
      list.push_back(parameter.get());
      owned.push_back(std::move(parameter));
    }
  }
  Parameter* Find(const std::string& name) const {
    for (Parameter* p : list) {
      if (p->name == name) return p;
    }
    return nullptr;
  }
  std::vector<Parameter*> list;
  std::vector<std::unique_ptr<Parameter>> owned;
};

bool SameBytes(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

TensorMap ReadAll(const std::string& file) {
  const auto source = SafeTensors::Open(file);
  CHECK_OK(source.status());
  TensorMap tensors;
  for (const auto& [name, info] : source->tensors()) {
    tensors[name] = *source->Load(name, allocator());
  }
  return tensors;
}

// A copy of a golden with its tensors changed.
std::string Variant(const std::string& golden, const std::string& name,
                    const std::function<void(TensorMap&)>& change) {
  const std::string from = UnpackGolden(golden);
  const std::string to = absl::StrCat(testing::TempDir(), "/", golden, name);
  fs::remove_all(to);
  fs::create_directories(to);
  fs::copy_file(from + "/config.json", to + "/config.json");
  TensorMap tensors = ReadAll(from + "/model.safetensors");
  change(tensors);
  CHECK_OK(WriteSafeTensors(to + "/model.safetensors", tensors));
  return to;
}

void Rename(TensorMap& tensors,
            const std::vector<std::pair<std::string, std::string>>& prefixes) {
  TensorMap renamed;
  for (const auto& [name, tensor] : tensors) {
    std::string to = name;
    for (const auto& [from, prefix] : prefixes) {
      if (absl::StartsWith(name, from)) {
        to = prefix + name.substr(from.size());
        break;
      }
    }
    renamed[to] = tensor;
  }
  tensors = renamed;
}

// Every layout of names that is known, of one golden.
std::vector<std::string> Variants(const std::string& golden) {
  auto rename = [&](const std::string& name, auto prefixes) {
    return Variant(golden, name, [&](TensorMap& t) { Rename(t, prefixes); });
  };
  using Prefixes = std::vector<std::pair<std::string, std::string>>;
  const Prefixes older = {{"vision_tower.", "vision_tower.vision_model."}};
  const Prefixes newer = {
      {"language_model.lm_head.", "lm_head."},
      {"language_model.model.", "model.language_model."},
      {"vision_tower.", "model.vision_tower."},
      {"multi_modal_projector.", "model.multi_modal_projector."}};
  Prefixes nested = newer;
  nested[2].second = "model.vision_tower.vision_model.";
  std::vector<std::string> folders = {
      Variant(golden, "_same", [](TensorMap&) {}), rename("_older", older),
      rename("_newer", newer), rename("_nested", nested)};
  folders.push_back(Variant(golden, "_buffers", [](TensorMap& t) {
    t["vision_tower.vision_model.embeddings.position_ids"] =
        Tensor::Zeros(allocator(), {1, 17}, DType::kInt64);
    t["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] =
        Tensor::Zeros(allocator(), {8}, DType::kFloat32);
  }));
  folders.push_back(Variant(golden, "_head", [](TensorMap& t) {
    t.emplace(kHfHead, t.at(kHfEmbedding));  // redundant where it is tied
  }));
  return folders;
}

TEST(HfNames, Canonical) {
  const std::pair<const char*, const char*> cases[] = {
      {"lm_head.weight", "language_model.lm_head.weight"},
      {"language_model.lm_head.weight", "language_model.lm_head.weight"},
      {"language_model.model.norm.weight", "language_model.model.norm.weight"},
      {"model.language_model.norm.weight", "language_model.model.norm.weight"},
      {"language_model.norm.weight", "language_model.model.norm.weight"},
      {"vision_tower.vision_model.encoder.x", "vision_tower.encoder.x"},
      {"model.vision_tower.vision_model.a", "vision_tower.a"},
      {"model.vision_tower.a", "vision_tower.a"},
      {"model.multi_modal_projector.linear_1.bias",
       "multi_modal_projector.linear_1.bias"},
      {"model.norm.weight", "model.norm.weight"},
  };
  for (const auto& [name, canonical] : cases) {
    EXPECT_EQ(CanonicalHfName(name), canonical);
    EXPECT_EQ(CanonicalHfName(canonical), canonical);
  }
}

// Said a second time, by hand: which rows of ours are which tensor of theirs.
TEST(HfCheckpoint, EveryKindOfTensorGoesWhereItBelongs) {
  const std::string folder = UnpackGolden("llava_full_multi");
  const auto config = ReadHfLlavaConfig(folder);
  ASSERT_TRUE(config.ok());
  Model model(*config);
  const absl::Status status = LoadHfParameters(folder, model.list);
  ASSERT_TRUE(status.ok()) << status;
  TensorMap theirs = ReadAll(folder + "/model.safetensors");
  // 6 heads of 16, 3 groups; ffn 200; vision 48.
  struct Row {
    std::string ours;
    int64_t row;
    std::string theirs;
  };
  const std::string llm = "language_model.", hf = "language_model.model.";
  const std::string vit = kVision, clip = "vision_tower.";
  const std::vector<Row> rows = {
      {llm + "embedding.weight", 0, hf + "embed_tokens.weight"},
      {llm + "layers.1.input_norm.weight", 0,
       hf + "layers.1.input_layernorm.weight"},
      {llm + "layers.1.attention.qkv.weight", 0,
       hf + "layers.1.self_attn.q_proj.weight"},
      {llm + "layers.1.attention.qkv.weight", 96,
       hf + "layers.1.self_attn.k_proj.weight"},
      {llm + "layers.1.attention.qkv.weight", 144,
       hf + "layers.1.self_attn.v_proj.weight"},
      {llm + "layers.1.attention.proj.weight", 0,
       hf + "layers.1.self_attn.o_proj.weight"},
      {llm + "layers.1.mlp_norm.weight", 0,
       hf + "layers.1.post_attention_layernorm.weight"},
      {llm + "layers.1.mlp.fc1.weight", 0,
       hf + "layers.1.mlp.gate_proj.weight"},
      {llm + "layers.1.mlp.fc1.weight", 200,
       hf + "layers.1.mlp.up_proj.weight"},
      {llm + "layers.1.mlp.fc2.weight", 0,
       hf + "layers.1.mlp.down_proj.weight"},
      {llm + "final_norm.weight", 0, hf + "norm.weight"},
      {llm + "head.weight", 0, "language_model.lm_head.weight"},
      {vit + "class_token", 0, clip + "embeddings.class_embedding"},
      {vit + "position_embedding.weight", 0,
       clip + "embeddings.position_embedding.weight"},
      {vit + "pre_norm.weight", 0, clip + "pre_layrnorm.weight"},
      {vit + "pre_norm.bias", 0, clip + "pre_layrnorm.bias"},
      {vit + "layers.2.input_norm.weight", 0,
       clip + "encoder.layers.2.layer_norm1.weight"},
      {vit + "layers.2.mlp_norm.bias", 0,
       clip + "encoder.layers.2.layer_norm2.bias"},
      {vit + "layers.2.attention.qkv.weight", 0,
       clip + "encoder.layers.2.self_attn.q_proj.weight"},
      {vit + "layers.2.attention.qkv.weight", 48,
       clip + "encoder.layers.2.self_attn.k_proj.weight"},
      {vit + "layers.2.attention.qkv.bias", 48,
       clip + "encoder.layers.2.self_attn.k_proj.bias"},
      {vit + "layers.2.attention.qkv.bias", 96,
       clip + "encoder.layers.2.self_attn.v_proj.bias"},
      {vit + "layers.2.attention.proj.weight", 0,
       clip + "encoder.layers.2.self_attn.out_proj.weight"},
      {vit + "layers.2.attention.proj.bias", 0,
       clip + "encoder.layers.2.self_attn.out_proj.bias"},
      {vit + "layers.2.mlp.fc1.weight", 0,
       clip + "encoder.layers.2.mlp.fc1.weight"},
      {vit + "layers.2.mlp.fc2.bias", 0,
       clip + "encoder.layers.2.mlp.fc2.bias"},
      {vit + "post_norm.weight", 0, clip + "post_layernorm.weight"},
      {std::string(kProjection) + "fc1.weight", 0,
       "multi_modal_projector.linear_1.weight"},
      {std::string(kProjection) + "fc2.bias", 0,
       "multi_modal_projector.linear_2.bias"},
  };
  for (const Row& row : rows) {
    const Parameter* parameter = model.Find(row.ours);
    ASSERT_NE(parameter, nullptr) << row.ours;
    const Tensor& wanted = theirs.at(row.theirs);
    EXPECT_TRUE(SameBytes(
        parameter->data.Rows(row.row, row.row + wanted.dim(0)), wanted))
        << row.ours << " " << row.theirs;
  }
  // Pixels of a patch: channel, row, column.
  const Tensor patches = theirs.at(clip + "embeddings.patch_embedding.weight");
  EXPECT_EQ(patches.shape(), (Shape{48, 3, 14, 14}));
  EXPECT_TRUE(SameBytes(model.Find(vit + "patch_embedding.weight")->data,
                        patches.Reshape({48, 3 * 14 * 14})));
  for (const Parameter* parameter : model.list) {
    for (float x : parameter->data.span<float>()) {
      ASSERT_FALSE(std::isnan(x)) << parameter->name;
    }
  }
}

TEST(HfCheckpoint, EveryLayoutLoadsTheSameAndGoesBackByteForByte) {
  for (const std::string golden : kGoldens) {
    const std::vector<std::string> folders = Variants(golden);
    const auto config = ReadHfLlavaConfig(folders[0]);
    ASSERT_TRUE(config.ok());
    Model first(*config);
    ASSERT_TRUE(LoadHfParameters(UnpackGolden(golden), first.list).ok());
    for (const std::string& folder : folders) {
      Model model(*config);
      const absl::Status status = LoadHfParameters(folder, model.list);
      ASSERT_TRUE(status.ok()) << status;
      for (size_t i = 0; i < first.list.size(); ++i) {
        ASSERT_TRUE(SameBytes(model.list[i]->data, first.list[i]->data))
            << folder << " " << first.list[i]->name;
      }

      // In, as a training checkpoint keeps it, and out.
      const auto tensors = LoadHfTensors(folder, allocator());
      ASSERT_TRUE(tensors.ok()) << tensors.status();
      const auto layout = ReadHfLayout(folder);
      ASSERT_TRUE(layout.ok());
      const std::string kept = folder + "/training";
      ASSERT_TRUE(
          SaveCheckpoint(kept, {.state = {},
                                .model = *tensors,
                                .optimizer = {},
                                .metadata = {{kHfLayoutKey, layout->ToText()}},
                                .files = {}})
              .ok());
      const std::string file = *FindCheckpoint(kept) + "/model.safetensors";
      const auto training = SafeTensors::Open(file);
      ASSERT_TRUE(training.ok());
      HfSaveOptions options;
      const auto back =
          HfLayout::FromText(training->metadata().at(kHfLayoutKey));
      ASSERT_TRUE(back.ok()) << back.status();
      EXPECT_EQ(*back, *layout);
      options.layout = *back;
      const std::string out = folder + "/out";
      const absl::Status saved =
          SaveHfCheckpoint(out, *config, ReadAll(file), options);
      ASSERT_TRUE(saved.ok()) << saved;
      const TensorMap wanted = ReadAll(folder + "/model.safetensors");
      const TensorMap got = ReadAll(out + "/model.safetensors");
      for (const auto& [name, tensor] : wanted) {
        if (IsHfBuffer(name)) continue;
        ASSERT_TRUE(got.contains(name)) << name;
        EXPECT_TRUE(SameBytes(got.at(name), tensor)) << name;
      }
      EXPECT_EQ(got.size(),
                wanted.size() - (absl::EndsWith(folder, "_buffers") ? 2 : 0));
      EXPECT_TRUE(ReadHfLlavaConfig(out).ok());
    }
    // Without a layout: the goldens' own names, and the very same file.
    const auto tensors = LoadHfTensors(folders[2], allocator());
    const std::string out = folders[2] + "/canonical";
    ASSERT_TRUE(SaveHfCheckpoint(out, *config, *tensors).ok());
    EXPECT_TRUE(*ReadFile(out + "/model.safetensors") ==
                *ReadFile(UnpackGolden(golden) + "/model.safetensors"));
  }
}

TEST(HfCheckpoint, HalfPrecisionGoesBackByteForByteThroughFloat32) {
  const std::string source =
      Variant("llava_gqa_tied", "_half", [](TensorMap&) {});
  TensorMap tensors = ReadAll(source + "/model.safetensors");
  std::vector<SafeTensorToWrite> entries;
  for (const auto& [name, tensor] : tensors) {
    // k_proj of another dtype than q_proj: their parameter holds both.
    entries.push_back({name, tensor,
                       absl::StrContains(name, "k_proj") ? DType::kFloat16
                                                         : DType::kBFloat16});
  }
  ASSERT_TRUE(WriteSafeTensors(source + "/model.safetensors", entries).ok());
  const auto config = ReadHfLlavaConfig(source);
  Model model(*config);
  ASSERT_TRUE(LoadHfParameters(source, model.list).ok());
  for (const TensorMap& kept :
       {DataOf(model.list), *LoadHfTensors(source, allocator())}) {
    HfSaveOptions options;
    options.layout = *ReadHfLayout(source);
    ASSERT_TRUE(SaveHfCheckpoint(source + "/out", *config, kept, options).ok());
    tensors = ReadAll(source + "/model.safetensors");
    const TensorMap got = ReadAll(source + "/out/model.safetensors");
    ASSERT_EQ(got.size(), tensors.size());
    for (const auto& [name, tensor] : tensors) {
      EXPECT_TRUE(SameBytes(got.at(name), tensor)) << name;
    }
  }
  HfSaveOptions options;
  options.dtype = DType::kFloat32;
  options.config_json = "{}\n";
  ASSERT_TRUE(
      SaveHfCheckpoint(source + "/wide", *config, DataOf(model.list), options)
          .ok());
  EXPECT_EQ(SafeTensors::Open(source + "/wide/model.safetensors")
                ->Find(kHfEmbedding)
                ->dtype,
            DType::kFloat32);
  EXPECT_EQ(*ReadFile(source + "/wide/config.json"), "{}\n");
}

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

TEST(HfGradients, NamesShapesAndZeros) {
  const std::string folder = Variants("llava_gqa_tied")[3];
  const auto config = ReadHfLlavaConfig(folder);
  Model model(*config);
  const std::string qkv = "language_model.layers.0.attention.qkv.weight";
  for (Parameter* p : model.list) {
    for (float& x : p->main_grad.span<float>()) x = NAN;  // never written
  }
  Parameter* written = model.Find(qkv);
  written->written = true;
  for (int64_t i = 0; i < written->main_grad.numel(); ++i) {
    written->main_grad.span<float>()[i] = i;
  }
  Parameter* frozen = model.Find(std::string(kVision) + "class_token");
  frozen->frozen = true;
  frozen->main_grad = Tensor();
  const auto grads =
      HfGradients(model.list, *config, allocator(), *ReadHfLayout(folder));
  ASSERT_TRUE(grads.ok()) << grads.status();
  const TensorMap weights = ReadAll(folder + "/model.safetensors");
  ASSERT_EQ(grads->size(), weights.size());
  for (const auto& [name, weight] : weights) {
    ASSERT_TRUE(grads->contains(name)) << name;
    const Tensor& grad = grads->at(name);
    EXPECT_EQ(grad.shape(), weight.shape()) << name;
    if (absl::StrContains(name, "layers.0.self_attn") &&
        absl::StrContains(name, "language")) {
      continue;
    }
    for (float x : grad.span<float>()) ASSERT_EQ(x, 0) << name;
  }
  // 8 heads and 2 groups of 8, hidden 64.
  const std::string attention = "model.language_model.layers.0.self_attn.";
  EXPECT_EQ(grads->at(attention + "q_proj.weight").span<float>()[5], 5);
  EXPECT_EQ(grads->at(attention + "k_proj.weight").span<float>()[5],
            64 * 64 + 5);
  EXPECT_EQ(grads->at(attention + "v_proj.weight").span<float>()[5],
            80 * 64 + 5);

  // The goldens name gradients as the weights are named; they leave out those
  // that are zero because nothing depends on the parameter.
  const std::string golden = UnpackGolden("llava_gqa_tied");
  const auto canonical = HfGradients(model.list, *config, allocator());
  for (const auto& [name, tensor] : ReadAll(golden + "/golden.safetensors")) {
    if (!absl::StartsWith(name, "grad.")) continue;
    ASSERT_TRUE(canonical->contains(name.substr(5))) << name;
    EXPECT_EQ(canonical->at(name.substr(5)).shape(), tensor.shape()) << name;
  }
  model.list[0]->name = "other";
  EXPECT_EQ(HfGradients(model.list, *config, allocator()).status().message(),
            "model: other is not in a Hugging Face LLaVA");
}

}  // namespace
}  // namespace mimo
