// `mimo train --ranks N` under every layout: the losses and the weights of one
// rank. Samples have 0, 1 or 3 pictures.
//
// layouts_test trains each layout once, with a number of micro-batches and a
// frozen part that go round, and some on other data; all_layouts_test each with
// all of them and on all data, twice.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/safetensors.h"
#include "models/hf/testing.h"
#include "tests/ranks/layout.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

const std::vector<Layout>& Layouts() {
  static const auto& layouts = *new std::vector<Layout>{
      {"homogeneous", 2, "dp2", "dp2"},
      {"homogeneous", 4, "tp2 dp2", "tp2 dp2"},
      {"homogeneous", 4, "tp4", "tp4"},
      {"homogeneous", 2, "cp2", "cp2"},
      {"homogeneous", 8, "tp2 cp2 dp2", "tp2 cp2 dp2"},
      {"homogeneous", 8, "tp2 pp2 dp2", "tp2 pp2 dp2"},
      {"colocated", 4, "dp4", "tp4"},
      {"colocated", 4, "dp4", "tp2 dp2"},
      {"colocated", 4, "dp4", "tp2 cp2"},
      {"colocated", 4, "dp4", "cp4"},
      {"colocated", 4, "dp4", "pp2 dp2"},
      {"colocated", 6, "cp2 dp3", "pp2 dp3"},
      {"colocated", 4, "tp4", "dp4"},
      {"colocated", 4, "tp2 dp2", "dp4"},
      {"colocated", 4, "tp2 cp2", "dp4"},
      {"heterogeneous", 3, "dp2", "dp1 @2"},
      {"heterogeneous", 3, "dp1", "dp2 @1"},
      {"heterogeneous", 5, "dp2", "dp3 @2"},
      {"heterogeneous", 3, "pp2 dp1", "dp1 @2"},
      {"heterogeneous", 6, "pp2 dp2", "pp2 dp1 @4"},
      {"heterogeneous", 3, "dp1", "cp2 dp1 @1"},
      {"heterogeneous", 5, "cp2 dp2", "dp3 @2"},
      {"heterogeneous", 3, "dp2", "dp2 @1"},  // rank 1 has both
      // Megatron-Bridge, run_hetero_llava_parallelism_tests.sh.
      {"heterogeneous", 8, "tp4 dp1 @4", "tp4 dp1"},
      {"heterogeneous", 8, "tp2 dp2 @4", "tp2 dp2"},
      {"heterogeneous", 8, "tp4 dp1 @4", "tp2 pp2 dp1"},
      {"heterogeneous", 8, "dp4 @4", "dp4"},
      {"heterogeneous", 8, "tp4 dp1 @4", "pp4 dp1"},
      {"heterogeneous", 8, "dp4 @4", "pp4 dp1"},
      {"heterogeneous", 8, "tp2 dp2 @4", "pp2 dp2"},
      {"heterogeneous", 8, "dp4 @4", "tp4 dp1"},
      {"heterogeneous", 8, "tp2 dp2 @4", "tp2 pp2 dp1"},
      {"heterogeneous", 8, "dp4 @4", "tp2 dp2"},
      {"heterogeneous", 8, "tp2 dp3 @2", "pp2 dp1"},
      {"heterogeneous", 8, "tp2 dp3 @2", "tp2 dp1"},
      {"heterogeneous", 4, "tp2 dp1 @2", "tp2 dp1"},
      {"heterogeneous", 4, "dp2 @2", "dp2"},
      {"heterogeneous", 2, "dp1 @1", "dp1"},
      {"heterogeneous", 8, "tp2 dp2 @4", "pp4 dp1"},
      {"heterogeneous", 8, "tp2 dp2 @4", "tp4 dp1"},
  };
  return layouts;
}

// Those with an even share of the numbers: of 1 / `share` of all, or of all.
std::vector<Layout> Some(size_t first, size_t share) {
  std::vector<Layout> some;
  for (size_t i = 0; i < Layouts().size(); ++i)
    if (All() || i % share == first % share) some.push_back(Layouts()[i]);
  return some;
}

// What one rank makes of it.
const Trained& One(int micro_batches, size_t part) {
  static auto& trained = *new std::map<std::pair<int, size_t>, Trained>;
  const auto [one, first] = trained.try_emplace({micro_batches, part});
  if (first) {
    one->second = TrainOn(TestFolder("one"), kOneRank, micro_batches,
                          FrozenParts()[part]);
  }
  return one->second;
}

class EachLayout : public testing::TestWithParam<size_t> {};
INSTANTIATE_TEST_SUITE_P(Layouts, EachLayout,
                         testing::Range<size_t>(0, Layouts().size()));

TEST_P(EachLayout, TrainsAsOneRank) {
  const size_t i = GetParam();
  const Layout& layout = Layouts()[i];
  const auto check = [&](int micro_batches, size_t part, bool twice) {
    SCOPED_TRACE(absl::StrCat(layout.Yaml(), micro_batches, " micro-batches\n",
                              FrozenParts()[part]));
    const auto run = [&] {
      return TrainOn(TestFolder("many"), layout, micro_batches,
                     FrozenParts()[part]);
    };
    const Trained got = run();
    ExpectNear(got, One(micro_batches, part));
    EXPECT_TRUE(!twice || run() == got) << "not bitwise";
  };
  if (!All()) {
    check(i % 8 == 7 ? 8 : 1 + i % 2, i / 2 % FrozenParts().size(), i % 5 == 0);
    return;
  }
  for (int micro_batches : {1, 2, 8})
    for (size_t part = 0; part < FrozenParts().size(); ++part)
      check(micro_batches, part, /*twice=*/true);
}

// How far ahead changes nothing but the time.
TEST(Layouts, FrozenEncodersRunAhead) {
  const Layout layouts[] = {{"heterogeneous", 4, "pp2 dp1", "pp2 dp1 @2"},
                            {"homogeneous", 4, "tp2 pp2", "tp2 pp2"},
                            {"colocated", 4, "dp4", "tp2 pp2"},
                            {"homogeneous", 2, "tp2", "tp2"},
                            kOneRank};
  for (int part : {1, 3}) {
    const Trained& one = One(2, part);
    for (const Layout& layout : layouts) {
      std::vector<Trained> trained;
      for (int ahead : {0, 1, 3}) {
        trained.push_back(
            TrainOn(TestFolder("ahead"), layout, 2, FrozenParts()[part],
                    {absl::StrCat("train.encoder_run_ahead=", ahead)}));
        EXPECT_TRUE(trained.back() == trained[0]) << layout.Yaml() << ahead;
      }
      ExpectNear(trained[0], one);
    }
  }
}

TEST(Layouts, PackedAsOneRankPadded) {
  const Trained wanted = TrainOn(TestFolder("one"), kOneRank, 2);
  for (const Layout& layout :
       std::vector<Layout>{kOneRank,
                           {"homogeneous", 8, "tp2 cp2 dp2", "tp2 cp2 dp2"},
                           {"colocated", 4, "dp4", "tp2 cp2"},
                           {"colocated", 4, "tp2 dp2", "pp2 dp2"},
                           {"heterogeneous", 6, "pp2 dp2", "pp2 dp1 @4"}}) {
    SCOPED_TRACE(layout.Yaml());
    ExpectNear(TrainOn(TestFolder("packed"), layout, 2, "",
                       {"train.pack_sequences=true"}),
               wanted);
  }
}

// The job that `mimo` has by default: flags, drawn by four artists.
TEST(Layouts, DefaultData) {
  const std::string config = Read("configs/flags.yaml");
  // The checkout, for the drawings in .deps: a test's files are links into it.
  setenv("BUILD_WORKSPACE_DIRECTORY",
         std::filesystem::canonical("configs/flags.yaml")
             .parent_path()
             .parent_path()
             .c_str(),
         1);
  const std::string data = TestFolder("data");
  const auto run = [&](const Layout& layout, int layers, int samples) {
    const std::string folder = TestFolder("run");
    return Train(
        {"train", "--config",
         Write(folder + "/config.yaml", config + layout.Yaml()),
         absl::StrCat("model.language.num_layers=", layers),
         absl::StrCat("train.micro_batch_size=", samples / Dp(layout.language)),
         absl::StrCat("train.global_batch_size=", samples),
         "train.train_iters=20", "train.eval_interval=10", "train.eval_iters=2",
         "data.data_dir=" + data, "checkpoint.save=" + folder + "/save",
         "logging.metrics=" + folder + "/metrics.jsonl",
         "logging.log_interval=1", "logging.progress=false",
         "logging.tensorboard_dir=null"},
        layout.ranks, folder);
  };
  const struct {
    int layers, samples;
    std::vector<Layout> layouts;
  } cases[] = {// Its own layers, and enough for any pipeline.
               {2,
                8,
                {{"homogeneous", 8, "tp2 pp2 dp2", "tp2 pp2 dp2"},
                 {"homogeneous", 2, "cp2", "cp2"},
                 {"colocated", 4, "dp4", "tp2 cp2"},
                 {"heterogeneous", 4, "pp2 dp1", "dp2 @2"}}},
               {4, kSamples, Some(3, 10)}};
  for (const auto& [layers, samples, layouts] : cases) {
    const Trained wanted = run(kOneRank, layers, samples);
    ASSERT_EQ(wanted.metrics.size(), 22u);  // two validations
    for (const Layout& layout : layouts) {
      SCOPED_TRACE(layout.Yaml());
      const Trained got = run(layout, layers, samples);
      ExpectNear(got, wanted);
      EXPECT_TRUE((!All() && layout.ranks > 4) ||
                  run(layout, layers, samples) == got)
          << "not bitwise";
    }
  }
}

// A file of the golden's batch, its rows so often that every layout has its
// share: the mean over them is the golden's.
std::string Repeated(const std::string& golden, int64_t times) {
  Allocator allocator;
  const auto file = SafeTensors::Open(golden + "/golden.safetensors");
  std::map<std::string, Tensor> tensors;
  for (const char* name : {"input_ids", "labels", "pixel_values"}) {
    const Tensor once = *file->Load(name, allocator);
    Shape shape = once.shape();
    shape[0] *= times;
    const Tensor all(allocator, shape, once.dtype());
    for (int64_t i = 0; i < times; ++i)
      all.Rows(i * once.dim(0), (i + 1) * once.dim(0)).CopyFrom(once);
    tensors[name] = all;
  }
  const std::string path = golden + "/repeated.safetensors";
  CHECK_OK(WriteSafeTensors(path, tensors));
  return path;
}

TEST(Layouts, GoldenBatch) {
  size_t turn = 0;
  for (const std::string name :
       {"llava15_tiny", "llava_gqa_tied", "llava_full_multi"}) {
    const std::string golden = UnpackGolden(name);
    const int64_t rows =
        ReadArrays(golden + "/golden.safetensors").at("input_ids").shape[0];
    const int layers = name == "llava_gqa_tied" ? 3 : 2;
    const auto words = [&](const std::string& folder, const Layout& layout,
                           const char* dtype, int64_t samples,
                           int64_t micro_batch) -> Words {
      const std::string config = absl::Substitute(
          kGoldenRun, golden, name == "llava15_tiny", samples, folder);
      return {"train",
              "--config",
              Write(folder + "/config.yaml", config + layout.Yaml()),
              absl::StrCat("train.micro_batch_size=", micro_batch),
              "data.path=" + Repeated(golden, samples / rows),
              absl::StrCat("train.dtype=", dtype)};
    };
    const auto run = [&](const Layout& layout, const char* dtype,
                         int64_t samples, int64_t micro_batch) {
      const std::string folder = TestFolder("run");
      return Train(words(folder, layout, dtype, samples, micro_batch),
                   layout.ranks, folder);
    };
    const auto repeated = [&](const Layout& layout, const char* dtype) {
      return run(layout, dtype, kSamples, kSamples / Dp(layout.language));
    };
    // Row by row.
    const Trained once = run(kOneRank, "float32", rows, 1);
    for (const Layout& layout :
         std::vector<Layout>{{"homogeneous", 2, "tp2", "tp2"},
                             {"homogeneous", 2, "pp2", "pp2"},
                             {"colocated", 2, "tp2", "cp2"},
                             {"heterogeneous", 3, "tp2 dp1", "dp1 @2"},
                             {"heterogeneous", 3, "dp1", "pp2 dp1 @1"}}) {
      SCOPED_TRACE(name + " " + layout.Yaml());
      const Trained got = run(layout, "float32", rows, 1);
      ExpectNear(got, once);
      EXPECT_TRUE(run(layout, "float32", rows, 1) == got) << "not bitwise";
    }
    // All of them so often that every layout has its share.
    const Trained wanted = repeated(kOneRank, "float64");
    const Trained exact = run(kOneRank, "float64", rows, rows);
    // What float32 makes of it: the loss falls to a hundredth, and AdamW's
    // first updates are the signs of gradients, of small ones too.
    const Trained rounded = repeated(kOneRank, "float32");
    double rounding = 0;
    for (size_t i = 0; i < wanted.metrics.size(); ++i) {
      const double loss = wanted.metrics[i]["lm_loss"];
      EXPECT_NEAR(exact.metrics[i]["lm_loss"], loss, 1e-10 * loss) << i;
      const double of_rounded = rounded.metrics[i]["lm_loss"];
      rounding = std::max(rounding, std::fabs(of_rounded / loss - 1));
    }
    EXPECT_LT(rounding, 1e-5);
    for (const Layout& layout : Some(turn++, 8)) {
      SCOPED_TRACE(name + " " + layout.Yaml());
      const int stages = SizeIn(layout.language, "pp");
      if (stages > layers) {
        Words refused = words(TestFolder("run"), layout, "float32", kSamples,
                              kSamples / Dp(layout.language));
        refused.insert(refused.end(), {"--ranks", absl::StrCat(layout.ranks)});
        const Ran ran = RunMimo(refused);
        EXPECT_EQ(ran.code, 2);
        EXPECT_TRUE(absl::StrContains(
            ran.err, absl::StrCat("num_layers: ", layers,
                                  ", wanted at least one for each of ", stages,
                                  " stages")))
            << ran.err;
        continue;
      }
      ExpectNear(repeated(layout, "float64"), wanted, 1e-10);
      const Trained got = repeated(layout, "float32");
      if (name == "llava_full_multi") {
        ExpectNear(got, wanted, std::max(1e-5, 3 * rounding));
      } else {
        ExpectNear(got, rounded);
      }
      EXPECT_TRUE(repeated(layout, "float32") == got) << "not bitwise";
    }
  }
}

}  // namespace
}  // namespace mimo
