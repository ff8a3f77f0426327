#include "models/hf/checkpoint.h"

#include <cmath>
#include <filesystem>

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
                                .model = Whole(*tensors),
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
       {model.Data(), *LoadHfTensors(source, allocator())}) {
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
      SaveHfCheckpoint(source + "/wide", *config, model.Data(), options).ok());
  EXPECT_EQ(SafeTensors::Open(source + "/wide/model.safetensors")
                ->Find(kHfEmbedding)
                ->dtype,
            DType::kFloat32);
  EXPECT_EQ(*ReadFile(source + "/wide/config.json"), "{}\n");
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
