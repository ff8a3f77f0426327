#include "mimo/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/log/check.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest()
      : folder_(absl::StrCat(
            testing::TempDir(), "/",
            testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::remove_all(folder_);
  }

  Tensor Filled(Shape shape, float value) {
    Tensor tensor(allocator_, shape, DType::kFloat32);
    for (float& x : tensor.span<float>()) x = value;
    return tensor;
  }

  // All values of iteration i are i.
  Checkpoint Make(int64_t iteration) {
    const float value = iteration;
    return {.state = {iteration, 4 * iteration, iteration - 1, 1, 1234},
            .model = Whole({{"a.weight", Filled({2, 3}, value)},
                            {"b", Filled({5}, value)}}),
            .optimizer = Whole({{"exp_avg.b", Filled({5}, value)}}),
            .metadata = {{"layout", "x"}},
            .files = {{"config.yaml", absl::StrCat("i: ", iteration, "\n")},
                      {"tokenizer.model", std::string("\0\xff\n", 3)}}};
  }

  std::set<std::string> Names() {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      names.insert(entry.path().filename().string());
    }
    return names;
  }

  void ExpectLoads(int64_t iteration) {
    const auto found = FindCheckpoint(folder_);
    ASSERT_TRUE(found.ok()) << found.status();
    const auto state = LoadTrainState(*found);
    ASSERT_TRUE(state.ok()) << state.status();
    const Checkpoint wanted = Make(iteration);
    EXPECT_EQ(*state, wanted.state);
    const TensorMap model = {{"a.weight", Filled({2, 3}, -1)},
                             {"b", Filled({5}, -1)}};
    ASSERT_TRUE(LoadSlices(*found, "model", Whole(model)).ok());
    for (const auto& [name, tensor] : model) {
      for (float x : tensor.span<float>()) EXPECT_EQ(x, iteration);
    }
    for (const auto& [name, bytes] : wanted.files) {
      EXPECT_EQ(*ReadFile(*found + "/" + name), bytes);
    }
  }

  Allocator allocator_;
  std::string folder_;
};

TEST_F(CheckpointTest, SavesAndFindsTheLatest) {
  EXPECT_EQ(FindCheckpoint(folder_).status().code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(SaveCheckpoint(folder_ + "/", Make(5)).ok());
  ExpectLoads(5);
  ASSERT_TRUE(SaveCheckpoint(folder_, Make(12)).ok());
  ExpectLoads(12);
  EXPECT_EQ(Names(),
            (std::set<std::string>{"iter_0000005", "iter_0000012", "latest"}));
  // An iteration's own folder is one too.
  const std::string one = folder_ + "/iter_0000005";
  EXPECT_EQ(*FindCheckpoint(one), one);
  EXPECT_EQ(LoadTrainState(one)->iteration, 5);
  // A run that begins again goes over its old iterations.
  Checkpoint again = Make(5);
  again.state.seed = 9;
  ASSERT_TRUE(SaveCheckpoint(folder_, again).ok());
  EXPECT_EQ(LoadTrainState(*FindCheckpoint(folder_))->seed, 9);
  EXPECT_EQ(Names(),
            (std::set<std::string>{"iter_0000005", "iter_0000012", "latest"}));
}

TEST_F(CheckpointTest, KeepsTheNewest) {
  for (int64_t i : {1, 2, 10, 11}) {
    ASSERT_TRUE(SaveCheckpoint(folder_, Make(i), i > 2 ? 2 : 0).ok());
  }
  ASSERT_TRUE(SaveCheckpoint(folder_, Make(12345678), 0).ok());
  EXPECT_EQ(Names(), (std::set<std::string>{"iter_0000010", "iter_0000011",
                                            "iter_12345678", "latest"}));
  // The one just saved is never among those removed.
  ASSERT_TRUE(SaveCheckpoint(folder_, Make(3), 1).ok());
  ExpectLoads(3);
  EXPECT_EQ(Names(),
            (std::set<std::string>{"iter_0000003", "iter_0000010",
                                   "iter_0000011", "iter_12345678", "latest"}));
}

TEST_F(CheckpointTest, SlicesOfShareTheParameters) {
  Parameter a;
  a.name = "a";
  a.data = Filled({2}, 1);
  const SliceMap slices = SlicesOf({&a});
  slices.at("a").data.span<float>()[1] = 7;
  EXPECT_EQ(a.data.span<float>()[1], 7);
}

TEST_F(CheckpointTest, AllTensorsThatDoNotFitAreListed) {
  ASSERT_TRUE(SaveCheckpoint(folder_, Make(1)).ok());
  const std::string one = *FindCheckpoint(folder_);
  const TensorMap model = {{"a.weight", Filled({3, 2}, -1)},
                           {"c", Filled({1}, -1)},
                           {"d", Filled({}, -1)}};
  EXPECT_EQ(LoadSlices(one, "model", Whole(model)).message(),
            one +
                "/model.safetensors: a.weight is [2, 3], wanted [3, 2]; b is "
                "not wanted; c is missing; d is missing");
  EXPECT_EQ(model.at("a.weight").span<float>()[0], -1);
}

TEST_F(CheckpointTest, DamageIsOneLine) {
  ASSERT_TRUE(SaveCheckpoint(folder_, Make(1)).ok());
  const std::string one = *FindCheckpoint(folder_);
  const std::string state = one + "/state.json";
  const std::string text = *ReadFile(state);
  std::ofstream(state) << "{\"iteration\": 1.5, \"seed\": 3}";
  EXPECT_EQ(LoadTrainState(one).status().message(),
            state +
                ": missing or not a whole number: iteration, "
                "consumed_samples, optimizer_steps, skipped_iterations");
  std::ofstream(state) << text.substr(0, text.size() / 2);
  EXPECT_EQ(LoadTrainState(one).status().message(),
            state + ": not a JSON object, wanted a training state");
  fs::remove(state);
  EXPECT_FALSE(LoadTrainState(one).ok());
  EXPECT_EQ(FindCheckpoint(folder_).status().message(),
            folder_ +
                "/latest: \"iter_0000001\", wanted the name of a checkpoint "
                "beside it");
  std::ofstream(folder_ + "/latest") << "../elsewhere\n";
  EXPECT_EQ(FindCheckpoint(folder_).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FindCheckpoint(folder_ + "/none").status().code(),
            absl::StatusCode::kNotFound);
  fs::remove(one + "/model.safetensors");
  EXPECT_EQ(LoadSlices(one, "model", {}).code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, FolderThatCannotBe) {
  std::ofstream(folder_) << "a file";
  for (const std::string& path : {folder_, folder_ + "/below"}) {
    const absl::Status status = SaveCheckpoint(path, Make(1));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_TRUE(absl::StartsWith(status.message(), path + ": cannot make: "))
        << status;
  }
}

}  // namespace
}  // namespace mimo
