// The three goldens through the command, as a user would run it, on every
// backend.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/substitute.h"
#include "cli/open_model.h"
#include "gtest/gtest.h"
#include "kernels/base/bfloat16.h"
#include "kernels/base/device.h"
#include "kernels/testing/backend.h"
#include "mimo/train/tensors_source.h"
#include "models/generate/generate.h"
#include "models/hf/llava_config.h"
#include "models/hf/testing.h"
#include "tests/golden/reference.h"
#include "tests/golden/tolerance.h"
#include "tests/testing/run_mimo.h"

namespace mimo {
namespace {

using Tensors = std::map<std::string, HostTensor>;

class Golden : public testing::TestWithParam<std::tuple<const char*, Backend>> {
 protected:
  void SetUp() override {
    const absl::Status usable = CheckDevice(backend().device);
    if (!usable.ok()) GTEST_SKIP() << usable.message();
    folder_ = UnpackGolden(std::get<0>(GetParam()));
    golden_ = ReadArrays(folder_ + "/golden.safetensors");
    const auto config = ReadHfLlavaConfig(folder_);
    ASSERT_TRUE(config.ok()) << config.status();
    config_ = *config;
    tolerance_ =
        ToleranceOf(backend().dtype, config_, golden_.at("logits").values,
                    golden_.at("labels").values, golden_.at("loss").values[0]);
  }

  const Backend& backend() const { return std::get<1>(GetParam()); }
  std::string device() const {
    return backend().device == Device::kCpu ? "cpu" : "cuda";
  }

  // Outputs of `mimo forward --grads`.
  Tensors Forward(const std::string& checkpoint, const std::string& device,
                  DType dtype) {
    const std::string out = folder_ + "/out.safetensors";
    const Ran ran =
        RunMimo({"forward", "--checkpoint", checkpoint, "--inputs",
                 folder_ + "/golden.safetensors", "--outputs", out, "--grads",
                 "--device", device, "--dtype", std::string(Name(dtype))});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ReadArrays(out);
  }

  void CheckForward() {
    const auto got = Forward(folder_, device(), backend().dtype);
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
                  tolerance_.zero * Norm(golden_.at(queries).values))
            << name;
        continue;
      }
      EXPECT_LE(RelativeL2(got.at(name).values, wanted.values),
                grad               ? tolerance_.grads
                : name == "logits" ? tolerance_.logits
                                   : tolerance_.features)
          << name;
    }
    EXPECT_NEAR(got.at("loss").values[0] / golden_.at("loss").values[0], 1,
                tolerance_.loss);
    // The golden leaves out what the loss does not depend on.
    for (const auto& [name, array] : got) {
      if (!absl::StartsWith(name, "grad.") || golden_.contains(name)) continue;
      EXPECT_EQ(Norm(array.values), 0) << name;
    }
  }

  Reference MakeReference() const {
    std::map<std::string, std::vector<double>> weights;
    for (auto& [name, array] : ReadArrays(folder_ + "/model.safetensors")) {
      weights[name] = array.values;
    }
    return Reference(config_, weights);
  }

  std::string folder_;
  Tensors golden_;
  LlavaConfig config_;
  Tolerance tolerance_;
};

TEST_P(Golden, Forward) { CheckForward(); }

TEST_P(Golden, Greedy) {
  const auto opened = OpenModel(folder_, {StreamOf(backend()), backend().dtype},
                                BuiltinModules());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto rows = TensorsSource::Open(
      folder_ + "/golden.safetensors",
      opened->section.model.special_token_ids.at(kImages),
      {.samples = 1, .text = DataSlice(), .modalities = {{kImages, {}}}});
  ASSERT_TRUE(rows.ok()) << rows.status();
  const auto row = (*rows)->Next();
  ASSERT_TRUE(row.ok()) << row.status();
  const Context ctx = opened->context();
  const auto tokens =
      Generate(ctx, *opened->model, row->input_ids,
               opened->model->InputsOf(ctx, *row), {.max_new_tokens = 12});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  const auto& wanted = golden_.at("greedy").values;
  if (backend().dtype != DType::kBFloat16) {
    EXPECT_EQ(std::vector<double>(tokens->begin(), tokens->end()), wanted);
  }

  // After the tokens so far each is the likeliest, but for rounding: two
  // logits are each off by the tolerance.
  ASSERT_EQ(tokens->size(), wanted.size());
  std::vector<double> ids(row->input_ids.begin(), row->input_ids.end());
  const int64_t prompt = ids.size();
  ids.insert(ids.end(), tokens->begin(), tokens->end());
  const auto& pixels = row->modalities.at(kImages).values;
  const auto logits = MakeReference().Logits(ids, 1, ids.size(),
                                             {pixels.begin(), pixels.end()});
  const int64_t vocab = config_.language.vocab_size;
  for (size_t i = 0; i < tokens->size(); ++i) {
    const auto at = logits.begin() + (prompt - 1 + i) * vocab;
    const std::vector<double> after(at, at + vocab);
    EXPECT_GE(after[(*tokens)[i]],
              *std::max_element(after.begin(), after.end()) -
                  2 * tolerance_.logits * Norm(after) / std::sqrt(vocab))
        << "token " << i;
  }
}

constexpr char kTrain[] = R"(
model:
  type: llava
  pretrained: $0
  freeze_language_model: $1
  freeze_modality_encoders: {images: true}
  freeze_modality_projections: {images: false}
data: {type: tensors, path: $0/golden.safetensors}
train: {train_iters: 20, micro_batch_size: $2,$3 seed: 1,
        device: $5, dtype: $6}
optimizer: {lr: 2.0e-3, min_lr: 2.0e-4, lr_warmup_iters: 3, lr_decay_iters: 20,
            lr_decay_style: cosine, weight_decay: 0.1, adam_beta1: 0.9,
            adam_beta2: 0.95, adam_eps: 1.0e-8, clip_grad: 1.0}
checkpoint: {save: $4}
logging: {log_interval: 1, metrics: $4/metrics.jsonl, progress: false}
)";

TEST_P(Golden, Training) {
  const int64_t batch = golden_.at("input_ids").shape[0];
  for (const std::string regime : {"full", "projector_only"}) {
    // Left out, it is all rows.
    for (const auto& [micro, global] :
         {std::pair(batch, absl::StrCat(" global_batch_size: ", batch, ",")),
          {1, std::string()}}) {
      SCOPED_TRACE(absl::StrCat(regime, ", micro batches of ", micro));
      const std::string run = TestFolder("run");
      const std::string config = Write(
          run + "/config.yaml",
          absl::Substitute(kTrain, folder_, regime == "projector_only", micro,
                           global, run, device(), Name(backend().dtype)));
      const Ran ran = RunMimo({"train", "--config", config});
      ASSERT_EQ(ran.code, 0) << ran.err;
      const auto lines = ReadMetrics(run + "/metrics.jsonl");
      ASSERT_EQ(lines.size(), 20);
      // Every step lowers the loss's logarithm by something in proportion to
      // the gradient: it is off by the loss's own error and, where the gradient
      // is, by the gradient's of all that it fell. So is the gradient, which
      // falls with the loss.
      const bool exact = backend().dtype == DType::kFloat32;
      const double grads = exact ? 0 : tolerance_.grads;
      const auto& losses =
          golden_.at(absl::StrCat("train.", regime, ".loss")).values;
      for (const auto& [key, name, own, of_fall] :
           {std::tuple("lm_loss", "loss", exact ? 1e-4 : tolerance_.loss,
                       grads),
            {"grad_norm", "grad_norm", exact ? 1e-4 : grads, grads},
            {"learning_rate", "lr", 1e-4, 0.0}}) {
        const auto& wanted =
            golden_.at(absl::StrCat("train.", regime, ".", name)).values;
        for (int64_t i = 0; i < 20; ++i) {
          EXPECT_NEAR(std::log(lines[i][key].get<double>() / wanted[i]), 0,
                      own + of_fall * std::log(losses[0] / losses[i]))
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
        std::vector<double> start = array.values;
        if (!exact) {
          for (double& x : start) {
            x = static_cast<float>(BFloat16(static_cast<float>(x)));
          }
        }
        if (wanted == golden_.end()) {  // frozen
          EXPECT_EQ(after.at(name).values, start) << name;
          continue;
        }
        ++trained;
        // AdamW takes no heed of a gradient's size: where one of the tensor's
        // numbers is below its error, a share of about that error of them, the
        // step goes anywhere. Both ends are rounded, too.
        const auto& end = wanted->second.values;
        const double error = RelativeL2(after.at(name).values, end);
        EXPECT_LE(error, exact ? 1e-3
                               : std::sqrt(2 * tolerance_.grads) *
                                         RelativeL2(array.values, end) +
                                     2 * Roundoff(DType::kBFloat16))
            << name;
      }
      EXPECT_GE(trained, 4);
    }
  }
}

// A checkpoint that was trained anywhere is read everywhere.
TEST_P(Golden, TrainedCheckpoint) {
  const int64_t batch = golden_.at("input_ids").shape[0];
  const std::string run = TestFolder("run");
  const std::string config =
      Write(run + "/config.yaml",
            absl::Substitute(kTrain, folder_, false, batch, "", run, device(),
                             Name(backend().dtype)));
  const Ran ran = RunMimo({"train", "--config", config, "train.train_iters=3"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto here = Forward(run, device(), DType::kFloat32);
  for (const auto& [name, wanted] : Forward(run, "cpu", DType::kFloat32)) {
    if (absl::EndsWith(name, "k_proj.bias")) continue;  // rounding
    EXPECT_LE(RelativeL2(here.at(name).values, wanted.values), 2e-5) << name;
  }
}

std::string NameOf(
    const testing::TestParamInfo<std::tuple<const char*, Backend>>& info) {
  return absl::StrCat(std::get<0>(info.param), "_",
                      testing::PrintToString(std::get<1>(info.param)));
}

INSTANTIATE_TEST_SUITE_P(On, Golden,
                         testing::Combine(testing::ValuesIn(kGoldens),
                                          testing::ValuesIn(Backends())),
                         NameOf);

class GoldenOracle : public Golden {};

TEST_P(GoldenOracle, Forward) { CheckForward(); }

// The oracle of variants_test.cc agrees with transformers.
TEST_P(GoldenOracle, Reference) {
  const Reference reference = MakeReference();
  const HostTensor& ids = golden_.at("input_ids");
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

INSTANTIATE_TEST_SUITE_P(On, GoldenOracle,
                         testing::Combine(testing::ValuesIn(kGoldens),
                                          testing::Values(Oracle())),
                         NameOf);

}  // namespace
}  // namespace mimo
