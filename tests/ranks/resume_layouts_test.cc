// `mimo train --ranks N` goes on under another layout than it was saved by.
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/base/bfloat16.h"
#include "mimo/checkpoint/checkpoint.h"
#include "tests/ranks/layout.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {
namespace {

// A run that goes on under another layout after every few iterations.
TEST(ResumeLayouts, AnyOtherGoesOn) {
  const std::string whole = TestFolder("whole"), parts = TestFolder("parts");
  const auto train = [&](const std::string& folder, const Layout& layout,
                         int until) {
    return TrainOn(folder, layout, 2, "",
                   {absl::StrCat("train.train_iters=", until),
                    "checkpoint.load=" + folder + "/save"});
  };
  const Trained wanted = train(whole, kOneRank, 20);
  const std::vector<Layout> layouts = {
      {"heterogeneous", 5, "dp2", "dp3 @2"},
      {"homogeneous", 4, "tp2 dp2", "tp2 dp2"},
      {"heterogeneous", 5, "tp4 dp1 @1", "dp1"},
      kOneRank,
      {"heterogeneous", 4, "dp2", "pp2 dp1 @2"},
      {"colocated", 4, "dp4", "tp2 dp2"},
      {"colocated", 4, "tp4", "dp4"},
      {"heterogeneous", 3, "dp2", "dp2 @1"}};
  for (size_t i = 0; i < layouts.size(); ++i) {
    SCOPED_TRACE(layouts[i].Yaml());
    train(parts, layouts[i], 2 * (i + 1));
  }
  // What a layout has saved it goes on from exactly.
  std::vector<Trained> ends;
  for (const char* copy : {"once", "again"}) {
    const std::string folder = TestFolder(copy);
    std::filesystem::copy(parts, folder,
                          std::filesystem::copy_options::recursive);
    const Layout& last = layouts.back();
    if (ends.empty()) train(folder, last, 18);
    ends.push_back(train(folder, last, 20));
  }
  EXPECT_TRUE(ends[0] == ends[1]) << "not bitwise";
  ExpectNear(ends[0], wanted);
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

}  // namespace
}  // namespace mimo
