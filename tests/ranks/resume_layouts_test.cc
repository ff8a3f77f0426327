// `mimo train --ranks N` goes on under another layout than it was saved by.
//
// resume_layouts_test takes a few random layouts, always the same;
// all_resume_layouts_test many, each time others.
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/base/bfloat16.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/checkpoint/safetensors.h"
#include "tests/ranks/layout.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

// Two iterations of a run: under a layout, in so many micro-batches each.
struct Link {
  Layout layout;
  int micro_batches = 2;
  bool packed = false;
};

// What another layout has left each link saves again with the same bits; from
// what it has saved itself it goes on exactly; all together are one rank's run,
// which it returns.
Trained ExpectGoesOn(const std::vector<Link>& chain,
                     const std::string& more = "", const Words& model_keys = {},
                     const char* model = kLlava) {
  const auto train = [&](const std::string& folder, const Link& link,
                         const std::string& from, int until) {
    Words words = {
        absl::StrCat("train.train_iters=", until), "train.global_batch_size=24",
        absl::StrCat("train.pack_sequences=", link.packed ? "true" : "false"),
        "checkpoint.load=" + from + "/save"};
    words.insert(words.end(), model_keys.begin(), model_keys.end());
    return TrainOn(folder, link.layout, 2, more, words, model);
  };
  const std::string parts = TestFolder("parts");
  Trained got;
  int until = 0;
  for (const Link& link : chain) {
    SCOPED_TRACE(absl::StrCat(link.layout.Yaml(), link.layout.ranks, " ranks"));
    if (until > 0) {
      const Trained same = train(TestFolder("same"), link, parts, until);
      EXPECT_TRUE(same.model == got.model && same.optimizer == got.optimizer);
    }
    const std::string stopped = TestFolder("stopped");
    std::filesystem::copy(parts, stopped,
                          std::filesystem::copy_options::recursive);
    train(stopped, link, stopped, until + 1);
    until += 2;
    got = train(parts, link, parts, until);
    EXPECT_TRUE(train(stopped, link, stopped, until) == got) << "not bitwise";
  }
  const std::string folder = TestFolder("whole");
  const Trained whole = train(folder, {kOneRank}, folder, until);
  ExpectNear(got, whole);
  return whole;
}

TEST(ResumeLayouts, AnyOtherGoesOn) {
  const std::vector<Link> chain = {
      {{"heterogeneous", 5, "dp2", "dp3 @2"}, 1},
      {{"homogeneous", 8, "tp2 cp2 dp2 sp", "tp2 cp2 dp2 sp"}},
      {{"heterogeneous", 7, "tp4 dp1 @2", "dp1", /*idle=*/true}, 4},
      {kOneRank, 2, /*packed=*/true},
      {{"heterogeneous", 8, "pp2 dp2", "pp4 dp1 @4"}},
      {{"colocated", 4, "dp4", "tp2 cp2"}, 1, /*packed=*/true},
      {{"colocated", 8, "tp4 cp2 sp", "pp2 dp4"}},
      {{"heterogeneous", 3, "pp2 dp1", "cp2 dp1 @1"}, 4},  // rank 1 has both
      {{"colocated", 4, "tp4", "dp4"}},
      {{"homogeneous", 8, "tp2 pp2 dp2", "tp2 pp2 dp2"}, 1}};
  // Sizes that no tp divides, layers that no pp does.
  ExpectGoesOn(
      chain, "",
      {"model.language.tie_word_embeddings=true",
       "model.language.vocab_size=401", "model.language.ffn_hidden_size=51",
       "model.language.num_layers=5", "model.vision.ffn_hidden_size=41"});
}

TEST(ResumeLayouts, RandomOnesGoOn) {
  const int seed = Seed();
  std::mt19937 bits(seed);
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  for (size_t i = 0; i < (All() ? 60 : 3); ++i) {
    std::vector<Link> chain;
    for (int k = 0; k < 6; ++k) {
      const Layout layout = RandomLayout(bits);
      chain.push_back({layout, Pick(bits, {1, 2}), Pick(bits, {0, 1}) == 1});
    }
    const std::string& frozen = FrozenParts()[i % FrozenParts().size()];
    SCOPED_TRACE(absl::StrCat("chain ", i, frozen));
    const Words tied = {"model.language.tie_word_embeddings=true"};
    ExpectGoesOn(chain, frozen, i % 3 == 1 ? tied : Words{},
                 i % 3 == 2 ? kTwoEncoders : kLlava);
  }
}

// 48 samples, two iterations, of 0, 1 and 3 pictures. In the second one a pixel
// is infinite.
std::string WriteOverflowing(const std::string& path) {
  constexpr int kRows = 48, kLength = 20, kTokens = 4, kPixels = 3 * 16 * 16;
  std::mt19937 bits(5);
  std::vector<int64_t> ids, labels;
  std::vector<float> pixels;
  for (int row = 0; row < kRows; ++row) {
    const int pictures = row % 3 == 2 ? 3 : row % 3;
    for (int t = 0; t < kLength; ++t) {
      const bool text = t >= kTokens * pictures;
      ids.push_back(text ? 5 + bits() % 300 : 4);
      labels.push_back(text ? ids.back() : -100);
    }
    for (int i = 0; i < kPixels * pictures; ++i)
      pixels.push_back(std::ldexp(static_cast<float>(bits()), -31) - 1);
  }
  pixels.back() = INFINITY;
  const int64_t pictures = pixels.size() / kPixels;
  Allocator allocator;
  const TensorMap tensors = {
      {"input_ids", Tensor::From<int64_t>(allocator, {kRows, kLength}, ids)},
      {"labels", Tensor::From<int64_t>(allocator, {kRows, kLength}, labels)},
      {"pixel_values",
       Tensor::From<float>(allocator, {pictures, 3, 16, 16}, pixels)}};
  CHECK_OK(WriteSafeTensors(path, tensors));
  return path;
}

// Every second update is skipped, by all ranks, whoever had the picture, and
// stays counted; whoever goes on knows how many were made.
TEST(ResumeLayouts, SkippedUpdatesStayCounted) {
  const std::string data =
      WriteOverflowing(TestFolder("data") + "/data.safetensors");
  const Trained whole =
      ExpectGoesOn({{{"heterogeneous", 6, "pp2 dp2", "pp2 dp1 @4"}},
                    {{"colocated", 4, "dp4", "tp2 cp2"}, 1, /*packed=*/true},
                    {{"homogeneous", 8, "tp2 pp2 dp2", "tp2 pp2 dp2"}, 4},
                    {kOneRank}},
                   "", {"data={type: tensors, path: " + data + "}"});
  const auto& lines = whole.metrics;
  ASSERT_EQ(lines.size(), 8u);
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(lines[i]["skipped_iterations"], (i + 1) / 2);
    EXPECT_EQ(lines[i]["lm_loss"].is_null(), i % 2 == 1);
  }
}

// Of what ranks have in common one saves it; four share two key/value heads.
TEST(ResumeLayouts, NothingIsSavedTwice) {
  for (const Layout& layout :
       std::vector<Layout>{{"heterogeneous", 6, "tp2 dp1", "tp2 dp2 @2"},
                           {"homogeneous", 8, "tp4 dp2", "tp4 dp2"}}) {
    const std::string folder = TestFolder("run");
    TrainOn(folder, layout, 2, "  freeze_modality_projections: {images: true}",
            {"train.train_iters=1"});
    const std::string one = *FindCheckpoint(folder + "/save");
    for (const std::string kind : {"model", "optimizer"}) {
      int64_t saved = 0, wanted = 0;
      for (const auto& entry : std::filesystem::directory_iterator(one)) {
        const std::string name = entry.path().filename();
        if (!absl::StartsWith(name, kind + "-")) continue;
        const auto file = SafeTensors::Open(entry.path());
        ASSERT_TRUE(file.ok()) << file.status();
        for (const auto& [tensor, info] : file->tensors())
          saved += NumElements(info.shape);
      }
      for (const auto& [tensor, shape] :
           ShardedTensors::Open(one, kind)->shapes())
        wanted += NumElements(shape);
      EXPECT_EQ(saved, wanted) << kind << layout.Yaml();
    }
  }
}

// Loaded and saved again: only the first moments are rounded, to the nearest
// and once.
TEST(ResumeLayouts, MomentsOfAnotherDtypeGoOn) {
  const Layout layouts[] = {{"colocated", 4, "tp2 dp2", "dp4"},
                            {"heterogeneous", 5, "dp2", "dp3 @2"},
                            {"homogeneous", 4, "tp2 dp2", "tp2 dp2"}};
  std::vector<Arrays> saved;
  std::string folder;
  for (int i : {0, 1, 2}) {
    Words overrides = {"train.train_iters=2",
                       absl::StrCat("optimizer.exp_avg_dtype=",
                                    i == 1 ? "bfloat16" : "float32")};
    if (i > 0) overrides.push_back("checkpoint.load=" + folder + "/save");
    folder = TestFolder(absl::StrCat("run", i));
    saved.push_back(TrainOn(folder, layouts[i], 2, "", overrides).optimizer);
    Allocator allocator;
    const auto tensors =
        ShardedTensors::Open(*FindCheckpoint(folder + "/save"), "optimizer");
    for (const auto& [name, values] : saved[0]) {
      EXPECT_EQ(tensors->Load(name, allocator)->dtype(),
                i == 1 && absl::StartsWith(name, "exp_avg.") ? DType::kBFloat16
                                                             : DType::kFloat32)
          << name;
    }
  }
  Arrays rounded = saved[0];
  for (auto& [name, values] : rounded) {
    if (!absl::StartsWith(name, "exp_avg.")) continue;
    for (double& m : values)
      m = static_cast<float>(BFloat16(static_cast<float>(m)));
    EXPECT_NE(values, saved[0].at(name));
  }
  EXPECT_EQ(saved[1], rounded);
  EXPECT_EQ(saved[2], rounded);
}

// All ranks say what one rank says, and nothing else.
TEST(ResumeLayouts, AnotherModelsCheckpointIsOneLine) {
  const std::string saved = TestFolder("saved");
  const Layout stages = {"homogeneous", 8, "tp2 pp2 dp2", "tp2 pp2 dp2"};
  TrainOn(saved, stages, 2, "", {"train.train_iters=1"});
  const std::string one = *FindCheckpoint(saved + "/save");
  const auto say = [&](const Layout& layout, const std::string& wrong) {
    const std::string folder = TestFolder("run");
    Words words = LayoutRun(folder, layout, 2);
    words.insert(words.end(), {wrong, "checkpoint.load=" + saved + "/save",
                               absl::StrCat("--ranks=", layout.ranks)});
    const Ran ran = RunMimo(words);
    EXPECT_EQ(ran.code, 2);
    EXPECT_TRUE(absl::StartsWith(ran.err, "mimo: " + one)) << ran.err;
    return ran.err;
  };
  for (const char* wrong :
       {"model.vision.num_layers=2", "model.language.num_layers=5",
        "model.language.tie_word_embeddings=true",
        "model.language.ffn_hidden_size=64",
        "model.freeze_language_model=true"}) {
    const std::string wanted = say(kOneRank, wrong);
    for (const Layout& layout :
         std::vector<Layout>{{"homogeneous", 2, "dp2", "dp2"},
                             stages,
                             {"colocated", 4, "dp4", "tp2 dp2"},
                             {"heterogeneous", 4, "dp2", "pp2 dp1 @2"}}) {
      EXPECT_EQ(say(layout, wrong), wanted) << wrong << "\n" << layout.Yaml();
    }
  }
}

}  // namespace
}  // namespace mimo
