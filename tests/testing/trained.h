// What `mimo train` leaves behind, and whether two runs agree.
#ifndef MIMO_TESTS_TESTING_TRAINED_H_
#define MIMO_TESTS_TESTING_TRAINED_H_

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "tests/testing/run_mimo.h"

namespace mimo {

using Words = std::vector<std::string>;
using Arrays = std::map<std::string, std::vector<double>>;

// All tensors of a kind of the newest checkpoint, however it was saved.
inline Arrays LoadSaved(const std::string& folder, const std::string& kind) {
  Allocator allocator;
  const auto tensors =
      ShardedTensors::Open(*FindCheckpoint(folder + "/save"), kind);
  CHECK_OK(tensors.status());
  Arrays arrays;
  for (const auto& [name, shape] : tensors->shapes()) {
    const Tensor tensor(allocator, shape, DType::kFloat32);
    CHECK_OK(tensors->LoadInto(name, {.data = tensor, .whole = shape}));
    const auto values = tensor.span<float>();
    arrays[name].assign(values.begin(), values.end());
  }
  return arrays;
}

struct Trained {
  std::vector<nlohmann::json> metrics;
  Arrays model, optimizer;
  bool operator==(const Trained&) const = default;
};

// `words` and --ranks; they save in folder/save and write folder/metrics.jsonl.
inline Trained Train(Words words, int ranks, const std::string& folder) {
  words.push_back("--ranks");
  words.push_back(absl::StrCat(ranks));
  const Ran ran = RunMimo(words);
  EXPECT_EQ(ran.code, 0) << ran.err;
  if (ran.code != 0) return {};
  Trained trained = {Untimed(ReadMetrics(folder + "/metrics.jsonl")),
                     LoadSaved(folder, "model"),
                     LoadSaved(folder, "optimizer")};
  for (auto& line :
       Untimed(ReadMetrics(folder + "/metrics.jsonl", "validation"))) {
    trained.metrics.push_back(line);
  }
  return trained;
}

// float32 sums in another order, and what AdamW makes of them: losses within
// `loss` of the wanted ones, relatively, the rest within ten times that.
inline void ExpectNear(const Trained& got, const Trained& wanted,
                       double loss = 1e-5) {
  ASSERT_EQ(got.metrics.size(), wanted.metrics.size());
  for (size_t i = 0; i < wanted.metrics.size(); ++i) {
    const auto& a = got.metrics[i];
    const auto& b = wanted.metrics[i];
    ASSERT_EQ(a.size(), b.size()) << a;
    for (const auto& [name, value] : b.items()) {
      if (!value.is_number()) {
        EXPECT_EQ(a[name], value) << name << " of line " << i;
        continue;
      }
      const double v = value.get<double>();
      EXPECT_NEAR(a[name].get<double>(), v,
                  (name == "grad_norm" ? 10 * loss : loss) * std::fabs(v))
          << name << " of line " << i;
    }
  }
  std::vector<double> ours, theirs;
  for (const auto& [name, values] : wanted.model) {
    const std::vector<double>& own = got.model.at(name);
    ours.insert(ours.end(), own.begin(), own.end());
    theirs.insert(theirs.end(), values.begin(), values.end());
  }
  EXPECT_LT(RelativeL2(ours, theirs), 10 * loss);
  EXPECT_EQ(got.optimizer.size(), wanted.optimizer.size());
}

// 20 iterations on the batch of a golden: its folder, whether the encoder is
// frozen, the batch's samples, the run's folder.
inline constexpr char kGoldenRun[] = R"(
model:
  type: llava
  pretrained: $0
  freeze_modality_encoders: {images: $1}
data: {type: tensors, path: $0/golden.safetensors}
train: {train_iters: 20, micro_batch_size: 1, global_batch_size: $2, seed: 1,
        check_replicas_interval: 5}
optimizer: {lr: 2.0e-3, min_lr: 2.0e-4, lr_warmup_iters: 3, lr_decay_iters: 20,
            weight_decay: 0.1, adam_beta2: 0.95, clip_grad: 1.0}
checkpoint: {save: $3/save}
logging: {metrics: $3/metrics.jsonl, progress: false}
)";

}  // namespace mimo

#endif  // MIMO_TESTS_TESTING_TRAINED_H_
