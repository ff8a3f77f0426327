// `mimo launch -- train` on GPUs, a process each: the losses of one GPU.
#include <cuda_runtime.h>

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "gtest/gtest.h"
#include "tests/ranks/layout.h"
#include "tests/testing/launched.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

constexpr char kConfig[] = R"(
model:
  type: llava
  language: {num_layers: 4, hidden_size: 64, ffn_hidden_size: 128,
             num_attention_heads: 4, num_query_groups: 2, vocab_size: 512,
             max_sequence_length: 96}
  vision: {num_layers: 3, hidden_size: 64, ffn_hidden_size: 128,
           num_attention_heads: 4, image_size: 16, patch_size: 8,
           feature_layer: -1, position_embedding_std: 0.5}
  special_token_ids: {images: 4}
data: {type: llava_json, path: $0/samples.jsonl, image_root: tests/fixtures,
       tokenizer_vocab_size: 320}
train: {train_iters: 20, micro_batch_size: $1, global_batch_size: $2, seed: 7,
        device: cuda, dtype: $3, check_replicas_interval: 10}
optimizer: {lr: 2.0e-3, min_lr: 1.0e-4, lr_warmup_iters: 2, lr_decay_iters: 20,
            weight_decay: 0.1, clip_grad: 1.0}
logging: {metrics: $0/metrics.jsonl, progress: false}
)";

int Gpus() {
  int gpus = 0;
  return cudaGetDeviceCount(&gpus) == cudaSuccess ? gpus : 0;
}

std::vector<double> Losses(const std::string& name, const std::string& dtype,
                           const std::string& yaml, int ranks, int dp) {
  const std::string folder = TestFolder(name);
  WriteSamples(folder + "/samples.jsonl");
  const std::string config =
      absl::Substitute(kConfig, folder, kSamples / dp, 2 * kSamples, dtype);
  const Words words = {"train", "--config",
                       Write(folder + "/config.yaml", config + yaml)};
  EXPECT_EQ(Wait(Start(folder, ranks == 1 ? words : Launched(ranks, words))), 0)
      << Read(folder + "/err");
  std::vector<double> losses;
  for (const auto& line : ReadMetrics(folder + "/metrics.jsonl"))
    losses.push_back(line["lm_loss"]);
  return losses;
}

class GpuLayouts : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(On, GpuLayouts,
                         testing::Values("float32", "bfloat16"));

TEST_P(GpuLayouts, TrainAsOneGpu) {
  const int gpus = Gpus();
  if (gpus < 2) GTEST_SKIP() << gpus << " GPUs, wanted 2";
  const std::vector<Layout> layouts = {
      {"homogeneous", 2, "dp2", "dp2"},
      {"homogeneous", 2, "tp2", "tp2"},
      {"homogeneous", 2, "cp2", "cp2"},
      {"homogeneous", 2, "pp2", "pp2"},
      {"colocated", 2, "dp2", "tp2"},
      {"colocated", 2, "tp2", "dp2"},
      {"colocated", 2, "dp2", "cp2"},
      {"colocated", 2, "dp2", "pp2"},
      {"heterogeneous", 2, "dp1", "dp1 @1"},
      {"homogeneous", 4, "tp2 dp2", "tp2 dp2"},
      {"colocated", 4, "dp4", "tp2 dp2"},
      {"colocated", 4, "dp4", "pp2 dp2"},
      {"heterogeneous", 4, "tp2 dp1 @2", "tp2 dp1"},
      {"heterogeneous", 3, "dp2", "dp1 @2"},
      {"heterogeneous", 4, "pp2 dp1", "pp2 dp1 @2"}};
  const std::string dtype = GetParam();
  // Sums of float32 in another order; bfloat16 rounds to 2^-9, and where sums
  // are cut between ranks a value may round the other way: two of these.
  const double tolerance = dtype == "float32" ? 1e-6 : 4e-3;
  const std::vector<double> wanted = Losses("one", dtype, "", 1, 1);
  ASSERT_EQ(wanted.size(), 20u);
  for (const Layout& layout : layouts) {
    if (layout.ranks > gpus) continue;
    SCOPED_TRACE(layout.Yaml());
    const std::vector<double> got =
        Losses("many", dtype, layout.Yaml(), layout.ranks, Dp(layout.language));
    ASSERT_EQ(got.size(), wanted.size());
    double worst = 0;
    for (size_t i = 0; i < wanted.size(); ++i)
      worst = std::max(worst, std::fabs(got[i] / wanted[i] - 1));
    EXPECT_LT(worst, tolerance);
    RecordProperty(
        absl::StrCat(layout.mode, " ", layout.images, " | ", layout.language),
        absl::StrCat(worst));
  }
}

}  // namespace
}  // namespace mimo
