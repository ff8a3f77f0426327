// Random checkpoints of other shapes than the goldens', through the command,
// on every backend,
// against the loops of reference.h.
#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "kernels/base/device.h"
#include "kernels/random/philox.h"
#include "kernels/testing/backend.h"
#include "models/hf/checkpoint.h"
#include "models/hf/llava_config.h"
#include "models/hf/testing.h"
#include "models/hf/weights.h"
#include "tests/golden/reference.h"
#include "tests/golden/tolerance.h"
#include "tests/testing/run_mimo.h"

namespace mimo {
namespace {

using Prefixes = std::vector<std::pair<std::string, std::string>>;

struct Case {
  const char* name;
  std::string config;             // config.json
  std::vector<int64_t> pictures;  // of each row
  int64_t seq;
  Prefixes names;     // canonical prefix -> on disk
  int64_t shard = 0;  // bytes of a shard; 0: a single file
};

const Case kCases[] = {
    // Heads of 10 where hidden / heads is 6; eps that would be seen if missed;
    // rope_theta as transformers 4 has it; features three layers before the
    // end; no bias in the projector.
    {"HeadDim",
     R"({"model_type": "llava", "image_token_index": 66,
         "multimodal_projector_bias": false,
         "projector_hidden_act": "gelu", "vision_feature_layer": -3,
         "vision_feature_select_strategy": "default",
         "text_config": {"model_type": "llama", "hidden_size": 36,
           "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
           "num_hidden_layers": 2, "intermediate_size": 50, "vocab_size": 67,
           "rms_norm_eps": 0.05, "rope_theta": 500.0,
           "max_position_embeddings": 64},
         "vision_config": {"model_type": "clip_vision_model",
           "hidden_size": 24, "num_attention_heads": 3,
           "num_hidden_layers": 4, "intermediate_size": 33, "image_size": 15,
           "patch_size": 5, "layer_norm_eps": 0.02, "hidden_act": "gelu"}})",
     {1, 3, 2},
     31,
     {{"vision_tower.", "vision_tower.vision_model."}}},
    // One group of keys, a tied head, a positive feature layer with its class
    // token, one channel, and the names of newer files.
    {"OneGroup",
     R"({"model_type": "llava", "image_token_id": 5,
         "projector_hidden_act": "gelu_pytorch_tanh",
         "vision_feature_layer": 1, "tie_word_embeddings": true,
         "vision_feature_select_strategy": "full",
         "text_config": {"model_type": "llama", "hidden_size": 40,
           "num_attention_heads": 5, "num_key_value_heads": 1,
           "num_hidden_layers": 3, "intermediate_size": 17, "vocab_size": 61,
           "rms_norm_eps": 1e-06,
           "rope_parameters": {"rope_theta": 1000000.0,
                               "rope_type": "default"}},
         "vision_config": {"hidden_size": 20, "num_attention_heads": 2,
           "num_hidden_layers": 2, "intermediate_size": 28, "image_size": 14,
           "patch_size": 7, "num_channels": 1}})",
     {2, 0, 1, 3},
     19,
     {{"language_model.model.", "model.language_model."},
      {"vision_tower.", "model.vision_tower.vision_model."},
      {"multi_modal_projector.", "model.multi_modal_projector."}}},
    // A patch a picture, the last layer's features, keys left out, shards.
    {"OnePatch",
     R"({"model_type": "llava", "image_token_index": 0,
         "vision_feature_layer": -1,
         "text_config": {"hidden_size": 16, "num_attention_heads": 4,
           "num_key_value_heads": 4, "num_hidden_layers": 1,
           "intermediate_size": 64, "vocab_size": 9, "rope_scaling": null},
         "vision_config": {"hidden_size": 12, "num_attention_heads": 1,
           "num_hidden_layers": 1, "intermediate_size": 8, "image_size": 6,
           "patch_size": 6}})",
     {1, 3},
     5,
     {},
     2000},
};

class RandomCheckpoint
    : public testing::TestWithParam<std::tuple<int, Backend>> {
 protected:
  // Random weights of every tensor of the config, inputs with each row's
  // pictures at random places.
  void SetUp() override {
    const absl::Status usable = CheckDevice(backend().device);
    if (!usable.ok()) GTEST_SKIP() << usable.message();
    const Case& c = kCases[index()];
    folder_ = TestFolder("hf");
    Write(folder_ + "/config.json", c.config);
    const auto config = ReadHfLlavaConfig(folder_);
    ASSERT_TRUE(config.ok()) << config.status();
    config_ = *config;
    PhiloxSequence random(11, index());
    TensorMap ours, theirs;
    for (const HfParameter& row : HfParameters(config_)) {
      Tensor& parameter = ours[row.name];
      parameter = Tensor(allocator(), row.shape, DType::kFloat32);
      const bool matrix = row.shape.size() > 1;
      const double scale = matrix ? 1 / std::sqrt(row.shape[1]) : 0.3;
      const double mean = absl::EndsWith(row.name, "norm.weight") ? 1 : 0;
      for (float& x : parameter.span<float>()) {
        x = mean + scale * random.Normal();
      }
      for (const HfTensor& tensor : row.tensors) {
        theirs[tensor.name] = View(parameter, tensor);
      }
    }
    if (c.shard > 0) {
      HfSaveOptions options;
      options.max_shard_bytes = c.shard;
      options.config_json = c.config;
      ASSERT_TRUE(SaveHfCheckpoint(folder_, config_, ours, options).ok());
      ASSERT_FALSE(std::filesystem::exists(folder_ + "/model.safetensors"));
    } else {
      TensorMap renamed = theirs;
      Rename(renamed, c.names);
      ASSERT_TRUE(
          WriteSafeTensors(folder_ + "/model.safetensors", renamed).ok());
    }
    for (const auto& [name, tensor] : theirs) {
      TensorMap one = {{name, tensor}};
      Rename(one, c.names);
      on_disk_[name] = one.begin()->first;
      weights_[name].assign(tensor.span<float>().begin(),
                            tensor.span<float>().end());
    }

    batch_ = c.pictures.size();
    seq_ = c.seq;
    const int64_t image = config_.special_token_ids.at("images");
    int64_t pictures = 0;
    for (int64_t count : c.pictures) {
      pictures += count;
      const int64_t tokens = count * config_.vision.features();
      ASSERT_LE(tokens, seq_);
      // The picture's tokens need not be neighbours.
      for (int64_t s = 0, left = tokens; s < seq_; ++s) {
        const bool here = static_cast<int64_t>(random.Below(seq_ - s)) < left;
        left -= here;
        int64_t id = random.Below(config_.language.vocab_size - 1);
        id += id >= image;
        ids_.push_back(here ? image : id);
        labels_.push_back(here || random.Below(4) == 0 ? -100 : id);
      }
    }
    const int64_t size = config_.vision.image_size;
    const Shape pixels = {pictures, config_.vision.num_channels, size, size};
    for (int64_t i = 0; i < NumElements(pixels); ++i) {
      pixels_.push_back(static_cast<float>(random.Normal()));
    }
    const std::vector<float> narrow(pixels_.begin(), pixels_.end());
    const std::vector<int64_t> ids(ids_.begin(), ids_.end());
    const std::vector<int64_t> labels(labels_.begin(), labels_.end());
    ASSERT_TRUE(
        WriteSafeTensors(
            folder_ + "/in.safetensors",
            TensorMap{{"input_ids",
                       Tensor::From<int64_t>(allocator(), {batch_, seq_}, ids)},
                      {"labels", Tensor::From<int64_t>(allocator(),
                                                       {batch_, seq_}, labels)},
                      {"pixel_values",
                       Tensor::From<float>(allocator(), pixels, narrow)}})
            .ok());
  }

  int index() const { return std::get<0>(GetParam()); }
  const Backend& backend() const { return std::get<1>(GetParam()); }

  std::map<std::string, HostTensor> Forward(const Backend& on) {
    const std::string out = folder_ + "/out.safetensors";
    const Ran ran =
        RunMimo({"forward", "--checkpoint", folder_, "--inputs",
                 folder_ + "/in.safetensors", "--outputs", out, "--grads",
                 "--device", on.device == Device::kCpu ? "cpu" : "cuda",
                 "--dtype", std::string(Name(on.dtype))});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ReadArrays(out);
  }

  std::vector<double> ReferenceLogits(
      const std::map<std::string, std::vector<double>>& weights) const {
    return Reference(config_, weights).Logits(ids_, batch_, seq_, pixels_);
  }

  void CheckByDifferences(
      const std::map<std::string, std::vector<double>>& grads) const {
    // Central differences of the reference's loss along a random direction in
    // each tensor. h^2 f''' is about 1e-8 beside gradients of about 1e-2, and
    // the difference of two losses holds about 1e-16 / h = 1e-12.
    const double h = 1e-4;
    PhiloxSequence random(12, index());
    for (const auto& [name, grad] : grads) {
      std::vector<double> direction(grad.size());
      for (double& x : direction) x = random.Normal();
      const double length = Norm(direction);
      double slope = 0;
      for (size_t i = 0; i < grad.size(); ++i) {
        direction[i] /= length;
        slope += direction[i] * grad[i];
      }
      const auto loss = [&](double step) {
        auto moved = weights_;
        for (size_t i = 0; i < grad.size(); ++i) {
          moved[name][i] += step * direction[i];
        }
        return Reference::Loss(ReferenceLogits(moved), labels_, seq_);
      };
      EXPECT_NEAR((loss(h) - loss(-h)) / (2 * h), slope,
                  1e-9 + 1e-5 * std::abs(slope) + 1e-5 * Norm(grad))
          << name;
    }
  }

  std::string folder_;
  LlavaConfig config_;
  std::map<std::string, std::vector<double>> weights_;  // by canonical name
  std::map<std::string, std::string> on_disk_;  // and what the folder calls it
  std::vector<double> ids_, labels_, pixels_;
  int64_t batch_, seq_;
};

TEST_P(RandomCheckpoint, Forward) {
  const auto wanted = ReferenceLogits(weights_);
  const auto features = Reference(config_, weights_).ImageFeatures(pixels_);
  const double loss = Reference::Loss(wanted, labels_, seq_);
  Tolerance tolerance =
      ToleranceOf(backend().dtype, config_, wanted, labels_, loss);
  // Two orders of the same sums. The loss is stored as float32.
  if (backend().dtype == DType::kFloat64) {
    tolerance = {.features = 1e-12, .logits = 1e-12, .loss = 1e-7};
  }
  const auto got = Forward(backend());
  EXPECT_EQ(got.at("logits").shape,
            (Shape{batch_, seq_, config_.language.vocab_size}));
  EXPECT_LE(RelativeL2(got.at("logits").values, wanted), tolerance.logits);
  EXPECT_LE(RelativeL2(got.at("image_features").values, features),
            tolerance.features);
  EXPECT_NEAR(got.at("loss").values[0] / loss, 1, tolerance.loss);
}

TEST_P(RandomCheckpoint, Gradients) {
  const auto exact = Forward(Oracle());
  std::map<std::string, std::vector<double>> grads;
  for (const auto& [name, values] : weights_) {
    ASSERT_TRUE(exact.contains("grad." + on_disk_.at(name))) << name;
    grads[name] = exact.at("grad." + on_disk_.at(name)).values;
    ASSERT_EQ(grads[name].size(), values.size()) << name;
  }
  if (backend().dtype == DType::kFloat64) {
    CheckByDifferences(grads);
    return;
  }
  const Tolerance tolerance =
      ToleranceOf(backend().dtype, config_, exact.at("logits").values, labels_,
                  exact.at("loss").values[0]);
  // The mean square of few independent errors is uncertain itself: its root by
  // 1 / sqrt(2 n) of it for n labels, here three times over.
  const double labelled = std::count_if(labels_.begin(), labels_.end(),
                                        [](double id) { return id >= 0; });
  const double few = 1 + 3 / std::sqrt(2 * labelled);
  const auto got = Forward(backend());
  for (const auto& [name, grad] : grads) {
    const auto& values = got.at("grad." + on_disk_.at(name)).values;
    if (absl::EndsWith(name, "k_proj.bias")) {
      // Zero but for rounding (golden_test.cc).
      const std::string queries =
          absl::StrReplaceAll(name, {{"k_proj", "q_proj"}});
      EXPECT_LE(Norm(values), tolerance.zero * Norm(grads.at(queries))) << name;
      continue;
    }
    EXPECT_LE(RelativeL2(values, grad), few * tolerance.grads) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    On, RandomCheckpoint,
    testing::Combine(testing::Range(0, 3),
                     testing::Values(Oracle(), Backends()[0], Backends()[1],
                                     Backends()[2])),
    [](const auto& info) {
      return absl::StrCat(kCases[std::get<0>(info.param)].name, "_",
                          testing::PrintToString(std::get<1>(info.param)));
    });

}  // namespace
}  // namespace mimo
