// `mimo launch -- train` on GPUs, a process each: the losses and the weights of
// one GPU, in the time that the schedule says.
#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/substitute.h"
#include "gtest/gtest.h"
#include "tests/ranks/gpus.h"
#include "tests/ranks/layout.h"
#include "tests/ranks/traced.h"
#include "tests/testing/launched.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

// Processes, or, as their start takes seconds, here.
Ran RunOn(int ranks, const std::string& folder, const Words& words) {
  if (ranks == 1) return RunMimo(words);
  const std::vector<pid_t> started = StartRanks(ranks, folder, words, Gpus());
  Ran all = {.code = 0};
  for (int rank = 0; rank < ranks; ++rank) {
    all.code = std::max(all.code, Wait(started[rank]));
    all.err += Read(absl::StrCat(folder, "/err", rank));
  }
  return all;
}

struct Learned {
  std::vector<double> losses, weights;
  bool operator==(const Learned&) const = default;
};

Learned Learn(const std::string& dtype, const Layout& layout, int micro_batches,
              size_t part, const Words& how = {}) {
  const std::string folder = TestFolder("run");
  Words words = LayoutRun(folder, layout, micro_batches, FrozenParts()[part]);
  words.insert(words.end(), kOnGpu.begin(), kOnGpu.end());
  words.push_back("train.dtype=" + dtype);
  words.insert(words.end(), how.begin(), how.end());
  const Ran ran = RunOn(layout.ranks, folder, words);
  EXPECT_EQ(ran.code, 0) << ran.err;
  Learned learned;
  if (ran.code != 0) return learned;
  for (const auto& line : ReadMetrics(folder + "/metrics.jsonl"))
    learned.losses.push_back(line["lm_loss"]);
  for (const auto& [parameter, values] : LoadSaved(folder, "model"))
    learned.weights.insert(learned.weights.end(), values.begin(), values.end());
  return learned;
}

// What one GPU makes of padded samples, keeping all activations.
const Learned& One(const std::string& dtype, int micro_batches, size_t part) {
  static auto& learned =
      *new std::map<std::tuple<std::string, int, size_t>, Learned>;
  const auto [one, first] = learned.try_emplace({dtype, micro_batches, part});
  if (first) one->second = Learn(dtype, kOneRank, micro_batches, part);
  return one->second;
}

// The largest relative difference of a loss, and that of all weights in L2.
struct Difference {
  double losses, weights;
};

Difference Between(const Learned& a, const Learned& b) {
  Difference difference = {.losses = a.losses.size() == 20 ? 0 : INFINITY,
                           .weights = RelativeL2(a.weights, b.weights)};
  for (size_t i = 0; i < std::min(a.losses.size(), b.losses.size()); ++i)
    difference.losses =
        std::max(difference.losses, std::fabs(a.losses[i] / b.losses[i] - 1));
  return difference;
}

// float32's sums in another order. bfloat16 rounds a value to 2^-9, and where
// sums are cut between ranks it may go the other way: two of these; and two
// runs that are each as far from float32's as one GPU's is, are at most twice
// that from each other.
Difference Tolerance(const std::string& dtype, int micro_batches, size_t part) {
  if (dtype == "float32") return {1e-6, 1e-4};
  const Difference rounding = Between(One(dtype, micro_batches, part),
                                      One("float32", micro_batches, part));
  return {std::max(4e-3, 2 * rounding.losses), 2 * rounding.weights};
}

class GpuLayouts : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(On, GpuLayouts,
                         testing::Values("float32", "bfloat16"));

// Ranks that share GPUs are slow: they train in float32 alone.
//
// Numbers of micro-batches, packing and activation checkpointing go round, and
// frozen parts over every second layout, in bfloat16 the others. Some run
// twice, and frozen encoders, which go their own way on a stream of their own,
// then run no micro-batches ahead: bitwise the same.
TEST_P(GpuLayouts, TrainAsOneGpu) {
  SKIP_BELOW_GPUS(2);
  std::vector<Layout> layouts = {
      kOneRank,
      {"homogeneous", 2, "tp2", "tp2"},
      {"homogeneous", 2, "dp2", "dp2"},
      {"homogeneous", 2, "tp2 sp", "tp2 sp"},
      {"colocated", 2, "tp2", "dp2"},
      {"homogeneous", 2, "pp2", "pp2"},
      {"homogeneous", 2, "cp2", "cp2"},
      {"colocated", 2, "dp2", "cp2"},
      {"colocated", 2, "dp2", "tp2"},
      {"colocated", 2, "dp2", "pp2"},
      {"colocated", 2, "tp2", "pp2"},
      {"heterogeneous", 2, "dp1", "dp1 @1"},
      {"homogeneous", 4, "tp2 dp2", "tp2 dp2"},
      {"homogeneous", 8, "tp2 dp2 pp2", "tp2 dp2 pp2"},
      {"colocated", 4, "dp4", "tp4"},
      {"colocated", 4, "dp4", "cp4"},
      {"colocated", 4, "dp4", "tp2 dp2"},
      {"colocated", 4, "dp4", "cp2 tp2"},
      {"colocated", 4, "dp4", "pp2 dp2"},
      {"colocated", 4, "tp4", "dp4"},
      {"colocated", 4, "tp2 dp2", "dp4"},
      {"heterogeneous", 3, "dp2", "dp1 @2"},
      {"heterogeneous", 3, "dp1", "dp2 @1"},
      {"heterogeneous", 3, "pp2 dp1", "dp1 @2"},
      {"heterogeneous", 4, "dp2", "dp1 cp2 @2"},
      {"heterogeneous", 4, "tp2 dp1 @2", "tp2 dp1"},
      {"heterogeneous", 4, "pp2 dp1", "pp2 dp1 @2"},
      {"heterogeneous", 4, "tp2 dp1 @2", "pp2 dp1"},
      {"heterogeneous", 5, "dp2", "dp3 @2"},
      // Spans that overlap in part.
      {"heterogeneous", 2, "dp2", "dp1 @1"},
      {"heterogeneous", 3, "dp2", "dp2 @1"},
      {"heterogeneous", 4, "pp2 dp1", "pp3 dp1 @1"}};
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  for (int i = 0; i < 4; ++i) layouts.push_back(RandomLayout(random));
  const std::string dtype = GetParam();
  const std::string kept[] = {"off", "selective", "full"};
  const size_t frozen[] = {1, 2, 3, 5, 4};
  for (size_t l = 0; l < layouts.size(); ++l) {
    const Layout& layout = layouts[l];
    if (layout.ranks > Gpus() && dtype != "float32") continue;
    const size_t turn = l + (dtype == "bfloat16");
    const int micro_batches = (const int[]){1, 2, 8}[turn % 3];
    const Words how = {
        absl::StrCat("train.pack_sequences=", turn % 2 == 1 ? "true" : "false"),
        "model.language.recompute=" + kept[turn / 2 % 3],
        "model.vision.recompute=" + kept[turn / 3 % 3]};
    std::vector<size_t> parts = {0};
    if (turn % 2 == 1) parts.push_back(frozen[turn / 2 % 5]);
    for (const size_t part : parts) {
      const std::string what =
          absl::StrCat(layout.mode, " ", layout.images, " | ", layout.language,
                       ", ", micro_batches, " micro-batches, ",
                       absl::StrJoin(how, " "), FrozenParts()[part]);
      SCOPED_TRACE(what);
      const auto learn = [&](int ahead) {
        Words words = how;
        words.push_back(absl::StrCat("train.encoder_run_ahead=", ahead));
        return Learn(dtype, layout, micro_batches, part, words);
      };
      const Learned got = learn(3);
      const Difference found = Between(got, One(dtype, micro_batches, part));
      const Difference tolerance = Tolerance(dtype, micro_batches, part);
      EXPECT_LT(found.losses, tolerance.losses);
      EXPECT_LT(found.weights, tolerance.weights);
      RecordProperty(what,
                     absl::StrCat(found.losses, " of ", tolerance.losses, ", ",
                                  found.weights, " of ", tolerance.weights));
      if (absl::StrContains(FrozenParts()[part], "encoders") || l % 4 == 3) {
        EXPECT_TRUE(learn(0) == got) << "not bitwise";
      }
    }
  }
}

// Stages of several milliseconds.
constexpr char kSlow[] = R"(
model:
  type: llava
  language: {num_layers: 8, hidden_size: 2048, ffn_hidden_size: 5504,
             num_attention_heads: 16, vocab_size: 8192,
             max_sequence_length: 1024}
  vision: {num_layers: 8, hidden_size: 2048, ffn_hidden_size: 8192,
           num_attention_heads: 32, image_size: 96, patch_size: 4,
           feature_layer: -1}
  special_token_ids: {images: 4}
data: {type: mock}
train: {train_iters: 6, micro_batch_size: 8, global_batch_size: 64, seed: 3,
        device: cuda, dtype: bfloat16}
optimizer: {lr: 1.0e-5}
logging: {progress: false, profile_after: 3, profile_iters: 3,
          trace: $0/trace.json}
)";

TEST(GpuTrace, TakesWhatTheScheduleSays) {
  SKIP_BELOW_GPUS(2);
  for (const Layout& layout :
       std::vector<Layout>{{"homogeneous", 2, "pp2", "pp2"},
                           {"colocated", 2, "dp2", "pp2"},
                           {"heterogeneous", 2, "dp1", "dp1 @1"},
                           {"homogeneous", 4, "pp4", "pp4"},
                           {"heterogeneous", 4, "pp2 dp1", "pp2 dp1 @2"}}) {
    if (layout.ranks > Gpus()) continue;
    SCOPED_TRACE(layout.Yaml());
    const std::string folder = TestFolder("run");
    const std::string config =
        Write(folder + "/config.yaml",
              absl::Substitute(kSlow, folder) + layout.Yaml());
    const Ran ran = RunOn(layout.ranks, folder, {"train", "--config", config});
    EXPECT_EQ(ran.code, 0) << ran.err;
    if (ran.code != 0) continue;
    const TracedIteration best =
        BestIteration(folder + "/trace.json", layout, /*iterations=*/3,
                      /*micro_batches=*/8);
    EXPECT_LT(best.over, 0.1);
    EXPECT_GT(best.over, -0.1);
    RecordProperty(
        absl::StrCat(layout.mode, " ", layout.images, " | ", layout.language),
        absl::StrCat(best.over));
  }
}

}  // namespace
}  // namespace mimo
