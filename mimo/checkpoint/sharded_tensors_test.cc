#include "mimo/checkpoint/sharded_tensors.h"

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;

std::string Folder() {
  const std::string folder = absl::StrCat(
      testing::TempDir(), "/",
      testing::UnitTest::GetInstance()->current_test_info()->name());
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

Allocator& allocator() {
  static Allocator* const allocator = new Allocator;
  return *allocator;
}

// Element i of the whole is i.
float ValueAt(int64_t i) { return static_cast<float>(i); }

TensorSlice Slice(Shape whole, Sharding sharding, int64_t begin, int64_t size,
                  bool filled) {
  TensorSlice slice = {
      .data =
          Tensor(allocator(), size == NumElements(whole) ? whole : Shape{size},
                 DType::kFloat32),
      .whole = whole,
      .sharding = sharding,
      .begin = begin};
  const auto values = slice.data.span<float>();
  for (float& x : values) x = -1;
  if (!filled) return slice;
  for (const SliceRun& run : RunsOf(whole, sharding, begin, size)) {
    for (int64_t i = 0; i < run.size; ++i)
      values[run.from + i] = ValueAt(run.at + i);
  }
  return slice;
}

int64_t PartSize(const Shape& whole, const Sharding& sharding) {
  Shape part = whole;
  part[sharding.dim] = 0;
  for (const Shard& shard : sharding.shards) part[sharding.dim] += shard.size;
  return NumElements(part);
}

struct Layout {
  int tp, dp;
  int dim;      // that tp cuts
  bool blocks;  // of two blocks, each cut for itself (gate and up)
};

// What rank r of the layout has of a [12, 10] matrix.
TensorSlice SliceOfRank(const Layout& layout, int rank, bool filled) {
  const Shape whole = {12, 10};
  const int tp = rank % layout.tp, dp = rank / layout.tp;
  Sharding sharding = {.dim = layout.dim};
  const int64_t size = whole[layout.dim];
  const int blocks = layout.blocks ? 2 : 1;
  for (int b = 0; b < blocks; ++b) {
    const int64_t length = size / blocks;
    const int64_t begin = length * tp / layout.tp;
    sharding.shards.push_back(
        {b * length + begin, length * (tp + 1) / layout.tp - begin});
  }
  const int64_t part = PartSize(whole, sharding);
  const int64_t begin = part * dp / layout.dp;
  return Slice(whole, sharding, begin, part * (dp + 1) / layout.dp - begin,
               filled);
}

TEST(ShardedTensors, CopiesAreNotSaved) {
  const std::string folder = Folder();
  for (const absl::Status& status : RunRanks(2, [&](Communicator& world) {
         Allocator memory;
         TensorSlice slice = SliceOfRank({1, 1, 0, false}, 0, true);
         slice.copy = world.rank() == 1;
         return SaveCheckpoint(folder, {.model = {{"w", slice}}}, 0,
                               {&world, &memory});
       })) {
    ASSERT_TRUE(status.ok()) << status;
  }
  const std::string one = *FindCheckpoint(folder);
  for (int rank : {0, 1}) {
    const auto file = SafeTensors::Open(
        absl::StrCat(one, "/model-0000", rank + 1, "-of-00002.safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->tensors().size(), 1 - rank);
  }
  EXPECT_EQ(ShardedTensors::Open(one, "model")
                ->Load("w", allocator())
                ->span<float>()[7],
            7);
}

// Queries of its own, keys and values that two tensor-parallel ranks have, and
// a norm: of each two halves.
TEST(ShardedTensors, RowsInCommonAreSavedOnce) {
  const std::string folder = Folder();
  const Shape matrix = {8, 3}, norm = {5};
  for (const absl::Status& status : RunRanks(4, [&](Communicator& world) {
         Allocator memory;
         const int tp = world.rank() % 2, dp = world.rank() / 2;
         const Sharding qkv = {0, {{2 * tp, 2}, {4, 2, 2, tp}, {6, 2, 2, tp}}};
         return SaveCheckpoint(
             folder,
             {.model = {{"qkv", Slice(matrix, qkv, 9 * dp, 9, true)},
                        {"norm", Slice(norm, {0, {{0, 5, 2, tp}}}, 3 * dp,
                                       dp == 0 ? 3 : 2, true)}}},
             0, {&world, &memory});
       })) {
    ASSERT_TRUE(status.ok()) << status;
  }
  const std::string one = *FindCheckpoint(folder);
  int64_t saved = 0;
  for (int rank = 1; rank <= 4; ++rank) {
    const auto file = SafeTensors::Open(
        absl::StrCat(one, "/model-0000", rank, "-of-00004.safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    for (const auto& [name, info] : file->tensors())
      saved += NumElements(info.shape);
  }
  EXPECT_EQ(saved, NumElements(matrix) + NumElements(norm));
  const auto tensors = ShardedTensors::Open(one, "model");
  for (const std::string name : {"qkv", "norm"}) {
    const auto loaded = tensors->Load(name, allocator());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    for (int64_t i = 0; i < loaded->numel(); ++i)
      EXPECT_EQ(loaded->span<float>()[i], ValueAt(i)) << name;
  }
}

TEST(ShardedTensors, AnyLayoutLoadsAnyOther) {
  const std::vector<Layout> layouts = {
      {1, 1, 0, false}, {1, 3, 0, false}, {2, 1, 1, false}, {2, 2, 0, true},
      {4, 2, 1, false}, {3, 2, 0, true},  {1, 8, 0, false}};
  for (const Layout& from : layouts) {
    const std::string folder = Folder();
    const int ranks = from.tp * from.dp;
    for (const absl::Status& status : RunRanks(ranks, [&](Communicator& world) {
           Allocator memory;
           const Checkpoint checkpoint = {
               .state = {.iteration = 3},
               .model = {{"w", SliceOfRank(from, world.rank(), true)}},
               .metadata = {{"layout", "x"}},
               .files = {{"config.yaml", "a: b\n"}}};
           return SaveCheckpoint(folder, checkpoint, 0, {&world, &memory});
         })) {
      ASSERT_TRUE(status.ok()) << status;
    }
    const std::string one = *FindCheckpoint(folder);
    EXPECT_EQ(fs::exists(one + "/manifest.json"), ranks > 1);
    EXPECT_EQ(*ReadFile(one + "/config.yaml"), "a: b\n");
    EXPECT_EQ(ShardedTensors::Open(one, "model")->metadata().at("layout"), "x");
    for (const Layout& to : layouts) {
      for (int rank = 0; rank < to.tp * to.dp; ++rank) {
        const TensorSlice got = SliceOfRank(to, rank, false);
        const TensorSlice wanted = SliceOfRank(to, rank, true);
        const absl::Status status = LoadSlices(one, "model", {{"w", got}});
        ASSERT_TRUE(status.ok()) << status;
        for (int64_t i = 0; i < got.data.numel(); ++i) {
          ASSERT_EQ(got.data.span<float>()[i], wanted.data.span<float>()[i])
              << ranks << " ranks to " << to.tp << " x " << to.dp;
        }
      }
    }
    const Tensor whole =
        *ShardedTensors::Open(one, "model")->Load("w", allocator());
    EXPECT_EQ(whole.shape(), (Shape{12, 10}));
    for (int64_t i = 0; i < 120; ++i)
      EXPECT_EQ(whole.span<float>()[i], ValueAt(i));
    // No rank's own manifest is left.
    for (const auto& entry : fs::directory_iterator(one))
      EXPECT_NE(entry.path().extension(), ".0") << entry.path();
  }
}

// Two ranks with the halves of "w".
std::string SaveHalves() {
  const std::string folder = Folder();
  for (const absl::Status& status : RunRanks(2, [&](Communicator& world) {
         Allocator memory;
         const Checkpoint checkpoint = {
             .state = {.iteration = 3},
             .model = {{"w", Slice({6}, {}, 3 * world.rank(), 3, true)}}};
         return SaveCheckpoint(folder, checkpoint, 0, {&world, &memory});
       })) {
    EXPECT_TRUE(status.ok()) << status;
  }
  return *FindCheckpoint(folder);
}

std::string LoadMessage(const std::string& folder) {
  return std::string(
      LoadSlices(folder, "model", {{"w", Slice({6}, {}, 0, 6, false)}})
          .message());
}

TEST(ShardedTensors, DamageIsOneLine) {
  const std::string one = SaveHalves();
  EXPECT_EQ(LoadMessage(one), "");
  const std::string manifest = one + "/manifest.json";
  const std::string text = *ReadFile(manifest);
  const auto with = [&](const std::string& from, const std::string& to) {
    EXPECT_TRUE(absl::StrContains(text, from)) << text;
    std::ofstream(manifest) << absl::StrReplaceAll(text, {{from, to}});
    return LoadMessage(one);
  };
  const std::string no_tensor =
      manifest + ": model.w: not a tensor's shape and slices";
  EXPECT_EQ(with("\"begin\":3", "\"begin\":-3"), no_tensor);
  EXPECT_EQ(with("\"shape\":[6]", "\"shape\":6"), no_tensor);
  EXPECT_EQ(with("\"dim\":0", "\"dim\":1"), no_tensor);
  EXPECT_EQ(with("\"shards\":[]", "\"shards\":[[5,2]]"), no_tensor);
  EXPECT_EQ(with("\"file\":\"model", "\"file\":\"../model"), no_tensor);
  EXPECT_TRUE(absl::StrContains(with("\"begin\":3", "\"begin\":4"),
                                "-00002-of-00002.safetensors: tensor w: [3], "
                                "wanted at most 2 elements"));
  EXPECT_TRUE(absl::StrContains(with("\"begin\":3", "\"begin\":2"),
                                ": tensor w: element 5 is in no file"));
  EXPECT_TRUE(absl::StrContains(with("\"model\":{", "\"models\":{"),
                                ": no model in it"));
  std::ofstream(manifest) << text.substr(0, text.size() / 2);
  EXPECT_TRUE(absl::StrContains(LoadMessage(one), ": no model in it"));
  std::ofstream(manifest) << text;
  EXPECT_EQ(LoadMessage(one), "");
  const std::string second = one + "/model-00002-of-00002.safetensors";
  std::string bytes = *ReadFile(second);
  bytes.back() ^= 1;
  std::ofstream(second) << bytes;
  EXPECT_TRUE(absl::StartsWith(
      LoadMessage(one), second + ": tensor w: damaged: bytes of CRC32C "));
  // Who takes nothing from there does not mind.
  EXPECT_TRUE(
      LoadSlices(one, "model", {{"w", Slice({6}, {}, 0, 3, false)}}).ok());
  fs::remove(one + "/model-00002-of-00002.safetensors");
  EXPECT_TRUE(
      absl::StrContains(LoadMessage(one), "/model-00002-of-00002.safetensors"));
}

// What one rank finds out, or what none wants, is every rank's error.
TEST(ShardedTensors, AllRanksSayTheSame) {
  const std::string one = SaveHalves();
  const auto load = [&](const SliceMap& first, const SliceMap& second) {
    const auto statuses = RunRanks(2, [&](Communicator& world) {
      Allocator memory;
      return LoadSlices(one, "model", world.rank() == 0 ? first : second,
                        {&world, &memory});
    });
    EXPECT_EQ(statuses[0], statuses[1]);
    return statuses[0];
  };
  const auto slice = [](int64_t size) {
    return Slice({size}, {}, 0, size, false);
  };
  const std::string manifest = one + "/manifest.json: ";
  EXPECT_TRUE(load({}, {{"w", slice(6)}}).ok());
  EXPECT_EQ(load({}, {}).message(), manifest + "w is not wanted");
  EXPECT_EQ(load({{"v", slice(1)}}, {{"u", slice(1)}, {"w", slice(5)}}),
            absl::InvalidArgumentError(
                manifest + "u is missing; v is missing; w is [6], wanted [5]"));
  fs::resize_file(one + "/model-00002-of-00002.safetensors", 5);
  EXPECT_EQ(load({}, {{"w", slice(6)}}).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mimo
