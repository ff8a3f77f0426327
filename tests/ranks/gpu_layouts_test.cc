// `mimo launch -- train` on GPUs, a process each: the losses of one GPU.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/ranks/layout.h"
#include "tests/testing/launched.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

// Sizes that GPUs multiply well; nothing is saved.
const Words kOnGpu = {"model.language.hidden_size=64",
                      "model.language.ffn_hidden_size=128",
                      "model.language.vocab_size=512",
                      "model.vision.hidden_size=64",
                      "model.vision.ffn_hidden_size=128",
                      "train.device=cuda",
                      "checkpoint.save=null"};

int Gpus() {
  int gpus = 0;
  return cudaGetDeviceCount(&gpus) == cudaSuccess ? gpus : 0;
}

std::vector<double> Losses(const std::string& name, const std::string& dtype,
                           const Layout& layout) {
  const std::string folder = TestFolder(name);
  Words words = LayoutRun(folder, layout, /*micro_batches=*/2);
  words.insert(words.end(), kOnGpu.begin(), kOnGpu.end());
  words.push_back("train.dtype=" + dtype);
  EXPECT_EQ(
      Wait(Start(folder,
                 layout.ranks == 1 ? words : Launched(layout.ranks, words))),
      0)
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
  const std::vector<double> wanted = Losses("one", dtype, kOneRank);
  ASSERT_EQ(wanted.size(), 20u);
  for (const Layout& layout : layouts) {
    if (layout.ranks > gpus) continue;
    SCOPED_TRACE(layout.Yaml());
    const std::vector<double> got = Losses("many", dtype, layout);
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
