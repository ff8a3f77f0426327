// `mimo launch -- train` on GPUs, a process each: the losses and the weights of
// one GPU.
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

// Sizes that GPUs multiply well.
const Words kOnGpu = {
    "model.language.hidden_size=64",    "model.language.ffn_hidden_size=128",
    "model.language.vocab_size=512",    "model.vision.hidden_size=64",
    "model.vision.ffn_hidden_size=128", "train.device=cuda"};

int Gpus() {
  int gpus = 0;
  return cudaGetDeviceCount(&gpus) == cudaSuccess ? gpus : 0;
}

struct Learned {
  std::vector<double> losses, weights;
  bool operator==(const Learned&) const = default;
};

Learned Learn(const std::string& name, const std::string& dtype,
              const Layout& layout, const std::string& frozen,
              const Words& more = {}) {
  const std::string folder = TestFolder(name);
  Words words = LayoutRun(folder, layout, /*micro_batches=*/2, frozen);
  words.insert(words.end(), kOnGpu.begin(), kOnGpu.end());
  words.push_back("train.dtype=" + dtype);
  words.insert(words.end(), more.begin(), more.end());
  EXPECT_EQ(
      Wait(Start(folder,
                 layout.ranks == 1 ? words : Launched(layout.ranks, words))),
      0)
      << Read(folder + "/err");
  Learned learned;
  for (const auto& line : ReadMetrics(folder + "/metrics.jsonl"))
    learned.losses.push_back(line["lm_loss"]);
  for (const auto& [parameter, values] : LoadSaved(folder, "model"))
    learned.weights.insert(learned.weights.end(), values.begin(), values.end());
  return learned;
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
      {"homogeneous", 2, "tp2 sp", "tp2 sp"},
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
  const std::string frozen[] = {"",
                                "  freeze_modality_encoders: {images: true}"};
  const Learned wanted[] = {Learn("one", dtype, kOneRank, frozen[0]),
                            Learn("one", dtype, kOneRank, frozen[1])};
  for (size_t l = 0; l < layouts.size(); ++l) {
    const Layout& layout = layouts[l];
    if (layout.ranks > gpus) continue;
    const int part = l % 3 == 2;
    SCOPED_TRACE(layout.Yaml() + frozen[part]);
    const Learned got = Learn("many", dtype, layout, frozen[part]);
    const Learned& one = wanted[part];
    ASSERT_EQ(got.losses.size(), 20u);
    ASSERT_EQ(one.losses.size(), 20u);
    double worst = 0;
    for (size_t i = 0; i < one.losses.size(); ++i)
      worst = std::max(worst, std::fabs(got.losses[i] / one.losses[i] - 1));
    EXPECT_LT(worst, tolerance);
    if (dtype == "float32") {
      EXPECT_LT(RelativeL2(got.weights, one.weights), 1e-4);
    }
    EXPECT_TRUE(l % 4 != 1 || Learn("many", dtype, layout, frozen[part]) == got)
        << "not bitwise";
    RecordProperty(
        absl::StrCat(layout.mode, " ", layout.images, " | ", layout.language),
        absl::StrCat(worst));
  }
}

// On a stream of their own, by any number of micro-batches: the same bits.
TEST_P(GpuLayouts, FrozenEncodersRunAhead) {
  const int gpus = Gpus();
  if (gpus < 1) GTEST_SKIP() << "no GPU";
  const std::vector<Layout> layouts = {
      kOneRank,
      {"homogeneous", 2, "tp2", "tp2"},
      {"colocated", 2, "tp2", "dp2"},
      {"colocated", 2, "tp2", "pp2"},
      {"colocated", 2, "dp2", "pp2"},
      {"heterogeneous", 2, "dp1", "dp1 @1"},
      {"heterogeneous", 4, "tp2 dp1 @2", "pp2 dp1"},
      {"heterogeneous", 4, "pp2 dp1", "pp2 dp1 @2"}};
  for (const Layout& layout : layouts) {
    if (layout.ranks > gpus) continue;
    for (const int part : {1, 3}) {
      Learned wanted;
      for (const int ahead : {0, 1, 3}) {
        SCOPED_TRACE(absl::StrCat(layout.Yaml(), FrozenParts()[part], "\n",
                                  ahead, " ahead"));
        const Learned got =
            Learn("ahead", GetParam(), layout, FrozenParts()[part],
                  {absl::StrCat("train.encoder_run_ahead=", ahead)});
        ASSERT_EQ(got.losses.size(), 20u);
        if (ahead == 0) wanted = got;
        EXPECT_EQ(got.losses, wanted.losses);
        EXPECT_TRUE(got == wanted);
      }
    }
  }
}

}  // namespace
}  // namespace mimo
