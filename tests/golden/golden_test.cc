// The three goldens through the command, as a user would run it.
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/substitute.h"
#include "cli/open_model.h"
#include "gtest/gtest.h"
#include "mimo/train/tensors_source.h"
#include "models/generate/generate.h"
#include "models/hf/llava_config.h"
#include "models/hf/testing.h"
#include "tests/golden/reference.h"
#include "tests/testing/run_mimo.h"

namespace mimo {
namespace {

class Golden : public testing::TestWithParam<const char*> {
 protected:
  Golden()
      : folder_(UnpackGolden(GetParam())),
        golden_(ReadArrays(folder_ + "/golden.safetensors")) {}

  // Outputs of `mimo forward --grads`.
  std::map<std::string, Array> Forward(const std::string& dtype) {
    const std::string out = folder_ + "/out.safetensors";
    const Ran ran = RunMimo({"forward", "--checkpoint", folder_, "--inputs",
                             folder_ + "/golden.safetensors", "--outputs", out,
                             "--grads", "--dtype", dtype});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ReadArrays(out);
  }

  void CheckForward(const std::string& dtype, double tolerance,
                    double loss_tolerance, double zero) {
    const auto got = Forward(dtype);
    for (const auto& [name, wanted] : golden_) {
      const bool grad = absl::StartsWith(name, "grad.");
      if (!grad && name != "logits" && name != "image_features") continue;
      ASSERT_TRUE(got.contains(name)) << name;
      EXPECT_EQ(got.at(name).shape, wanted.shape) << name;
      if (absl::EndsWith(name, "k_proj.bias")) {
        // A bias of the keys adds the same to all scores of a query, which the
        // softmax takes out: its gradient is zero, and what the golden holds
        // (norm 5e-9) is transformers' rounding. We hold rounding too.
        const std::string queries =
            absl::StrReplaceAll(name, {{"k_proj", "q_proj"}});
        EXPECT_LE(Norm(got.at(name).values),
                  zero * Norm(golden_.at(queries).values))
            << name;
        continue;
      }
      EXPECT_LE(RelativeL2(got.at(name).values, wanted.values), tolerance)
          << name;
    }
    EXPECT_NEAR(got.at("loss").values[0] / golden_.at("loss").values[0], 1,
                loss_tolerance);
    // The golden leaves out what the loss does not depend on.
    for (const auto& [name, array] : got) {
      if (!absl::StartsWith(name, "grad.") || golden_.contains(name)) continue;
      EXPECT_EQ(Norm(array.values), 0) << name;
    }
  }

  const std::string folder_;
  const std::map<std::string, Array> golden_;
};

TEST_P(Golden, Float32) { CheckForward("float32", 2e-5, 1e-5, 1e-4); }

// Stored as float32, 6e-8; transformers takes softmax, RMS norm and rotary
// angles in float32 even of a float64 model, which leaves a few times that.
TEST_P(Golden, Float64) { CheckForward("float64", 1e-6, 1e-6, 1e-12); }

// The oracle of variants_test.cc agrees with transformers.
TEST_P(Golden, Reference) {
  const auto config = ReadHfLlavaConfig(folder_);
  ASSERT_TRUE(config.ok()) << config.status();
  std::map<std::string, std::vector<double>> weights;
  for (auto& [name, array] : ReadArrays(folder_ + "/model.safetensors")) {
    weights[name] = array.values;
  }
  const Reference reference(*config, weights);
  const Array& ids = golden_.at("input_ids");
  const auto& pixels = golden_.at("pixel_values").values;
  const auto logits =
      reference.Logits(ids.values, ids.shape[0], ids.shape[1], pixels);
  EXPECT_LE(RelativeL2(logits, golden_.at("logits").values), 1e-6);
  EXPECT_LE(RelativeL2(reference.ImageFeatures(pixels),
                       golden_.at("image_features").values),
            1e-6);
  EXPECT_NEAR(
      Reference::Loss(logits, golden_.at("labels").values, ids.shape[1]),
      golden_.at("loss").values[0], 1e-6);
}

TEST_P(Golden, Greedy) {
  const auto opened =
      OpenModel(folder_, {Stream(), DType::kFloat32}, BuiltinModules());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto all = ReadTensorBatch(folder_ + "/golden.safetensors");
  ASSERT_TRUE(all.ok());
  const auto row = SliceRows(
      *all, 0, 1, opened->section.model.special_token_ids.at(kImages));
  ASSERT_TRUE(row.ok()) << row.status();
  const Context ctx = opened->context();
  const auto tokens =
      Generate(ctx, *opened->model, row->input_ids,
               opened->model->InputsOf(ctx, *row), {.max_new_tokens = 12});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(std::vector<double>(tokens->begin(), tokens->end()),
            golden_.at("greedy").values);
}

constexpr char kTrain[] = R"(
model:
  type: llava
  pretrained: $0
  freeze_language_model: $1
  freeze_modality_encoders: {images: true}
  freeze_modality_projections: {images: false}
data: {type: tensors, path: $0/golden.safetensors}
train: {train_iters: 20, micro_batch_size: $2, global_batch_size: $3, seed: 1}
optimizer: {lr: 2.0e-3, min_lr: 2.0e-4, lr_warmup_iters: 3, lr_decay_iters: 20,
            lr_decay_style: cosine, weight_decay: 0.1, adam_beta1: 0.9,
            adam_beta2: 0.95, adam_eps: 1.0e-8, clip_grad: 1.0}
checkpoint: {save: $4}
logging: {log_interval: 1, metrics: $4/metrics.jsonl, progress: false}
)";

TEST_P(Golden, Training) {
  const int64_t batch = golden_.at("input_ids").shape[0];
  for (const std::string regime : {"full", "projector_only"}) {
    for (const int64_t micro : {batch, int64_t{1}}) {
      SCOPED_TRACE(absl::StrCat(regime, ", micro batches of ", micro));
      const std::string run = TestFolder("run");
      const std::string config =
          Write(run + "/config.yaml",
                absl::Substitute(kTrain, folder_, regime == "projector_only",
                                 micro, batch, run));
      const Ran ran = RunMimo({"train", "--config", config});
      ASSERT_EQ(ran.code, 0) << ran.err;
      const auto lines = ReadMetrics(run + "/metrics.jsonl");
      ASSERT_EQ(lines.size(), 20);
      for (const auto& [key, name] : {std::pair("lm_loss", "loss"),
                                      {"grad_norm", "grad_norm"},
                                      {"learning_rate", "lr"}}) {
        const Array& wanted =
            golden_.at(absl::StrCat("train.", regime, ".", name));
        for (int64_t i = 0; i < 20; ++i) {
          EXPECT_NEAR(lines[i][key].get<double>() / wanted.values[i], 1, 1e-4)
              << key << " of step " << i + 1;
        }
      }

      // The weights that the run ended with, under their names on disk.
      const Ran converted =
          RunMimo({"convert", "--from", run, "--to", run + "/hf"});
      ASSERT_EQ(converted.code, 0) << converted.err;
      const auto before = ReadArrays(folder_ + "/model.safetensors");
      const auto after = ReadArrays(run + "/hf/model.safetensors");
      ASSERT_EQ(after.size(), before.size());
      int64_t trained = 0;
      for (const auto& [name, array] : before) {
        const auto wanted =
            golden_.find(absl::StrCat("train.", regime, ".final.", name));
        if (wanted == golden_.end()) {  // frozen
          EXPECT_EQ(after.at(name).values, array.values) << name;
          continue;
        }
        ++trained;
        EXPECT_LE(RelativeL2(after.at(name).values, wanted->second.values),
                  1e-3)
            << name;
      }
      EXPECT_GE(trained, 4);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Golden, testing::ValuesIn(kGoldens),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

}  // namespace
}  // namespace mimo
