// The profile of a tiny LLaVA's training.
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/backend.h"
#include "mimo/train/trainer.h"
#include "models/llava/llava.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

using nlohmann::json;

class SameBatch : public BatchSource {
 public:
  absl::StatusOr<MicroBatch> Next() override { return TwoSamples(); }
  absl::Status Seek(int64_t) override { return absl::OkStatus(); }
};

class ProfileTest : public BackendTest {
 protected:
  // The events of a run of six iterations of two micro-batches.
  std::vector<json> Profile(int64_t after, int64_t iterations) {
    Allocator allocator(StreamOf(backend()));
    auto model = MimoModel::Build(
        LlavaModelConfig(Tiny()), BuiltinModules(),
        {.allocator = &allocator, .dtype = backend().dtype, .seed = 11});
    CHECK_OK(model.status());
    MimoStage stage(**model, allocator, {.capture = true});
    SameBatch source;
    TrainerOptions options;
    options.train = {
        .train_iters = 6, .micro_batch_size = 2, .global_batch_size = 4};
    options.logging.progress = false;
    options.logging.profile = path_;
    options.logging.profile_after = after;
    options.logging.profile_iters = iterations;
    DistributedDataParallel parallel({{"model", stage.Parameters()}},
                                     allocator);
    auto trainer = Trainer::Create(options, stage, parallel, source, allocator);
    CHECK_OK(trainer.status());
    CHECK_OK((*trainer)->Run().status());
    std::ifstream file(path_);
    return json::parse(file).at("traceEvents");
  }
  const std::string path_ =
      testing::TempDir() + "/profile_test/" +
      testing::UnitTest::GetInstance()->current_test_info()->name() + ".json";
};
MIMO_ON_BACKENDS(ProfileTest);

struct Range {
  std::string name;
  double begin, end;  // microseconds
  json args;
};

std::vector<Range> RangesOn(const std::vector<json>& events,
                            const std::string& timeline) {
  std::map<int, std::string> names;
  std::vector<Range> ranges;
  for (const json& event : events) {
    if (event.at("ph") == "M") {
      names[event.at("tid")] = event.at("args").at("name");
    } else if (event.at("ph") == "X" && names.at(event.at("tid")) == timeline) {
      const double begin = event.at("ts");
      ranges.push_back({event.at("name"), begin,
                        begin + event.at("dur").get<double>(),
                        event.at("args")});
    }
  }
  return ranges;
}

TEST_P(ProfileTest, RangesNestOnBothTimelines) {
  const std::vector<json> events = Profile(/*after=*/2, /*iterations=*/3);
  for (const std::string timeline : {"host", "device"}) {
    const std::vector<Range> ranges = RangesOn(events, timeline);
    std::map<std::string, int> count;
    for (const Range& range : ranges) ++count[range.name];
    // Three iterations of two micro-batches.
    EXPECT_EQ(count["iteration 3"], 1);
    EXPECT_EQ(count["iteration 5"], 1);
    EXPECT_EQ(count["iteration 6"], 0);
    EXPECT_EQ(count["update"], 3);
    EXPECT_EQ(count["data"], 6);
    // Of the encoder and of the language model.
    EXPECT_EQ(count["forward"], 2 * 6);
    EXPECT_EQ(count["backward"], 2 * 6);
    for (const std::string module :
         {"language_model.layers.0.mlp", "language_model.layers.1.attention"}) {
      EXPECT_EQ(count[module], 6) << module;
      EXPECT_EQ(count[module + " backward"], 6) << module;
    }
    // A millionth of a microsecond is the times' rounding when added.
    constexpr double kRounding = 1e-6;
    std::map<std::string, double> seconds;
    for (const Range& a : ranges) {
      EXPECT_GE(a.begin, 0) << a.name;
      EXPECT_GE(a.end, a.begin - kRounding) << a.name;
      EXPECT_LT(a.end, 600e6) << a.name;  // no test runs for ten minutes
      seconds[a.name] += 1e-6 * (a.end - a.begin);
      for (const Range& b : ranges) {
        const bool apart =
            a.end <= b.begin + kRounding || b.end <= a.begin + kRounding;
        const bool nested =
            (a.begin <= b.begin + kRounding && b.end <= a.end + kRounding) ||
            (b.begin <= a.begin + kRounding && a.end <= b.end + kRounding);
        EXPECT_TRUE(apart || nested) << a.name << " and " << b.name;
      }
      // A module's work is in its phase.
      if (a.name.find('.') == std::string::npos) continue;
      const std::string phase =
          a.name.ends_with(" backward") ? "backward" : "forward";
      bool inside = false;
      for (const Range& b : ranges)
        inside |= b.name == phase && b.begin <= a.begin + kRounding &&
                  a.end <= b.end + kRounding;
      EXPECT_TRUE(inside) << a.name;
    }
    const double passes = seconds["forward"] + seconds["backward"];
    const double iterations = seconds["iteration 3"] + seconds["iteration 4"] +
                              seconds["iteration 5"];
    EXPECT_GT(seconds["language_model"], 0);
    EXPECT_LT(seconds["language_model"], seconds["forward"]);
    EXPECT_LT(passes + seconds["update"], iterations);
  }
}

TEST_P(ProfileTest, CountsTokensLossAndMemory) {
  const std::vector<json> events = Profile(/*after=*/0, /*iterations=*/100);
  int iterations = 0, counters = 0;
  for (const Range& range : RangesOn(events, "host")) {
    if (!range.name.starts_with("iteration")) continue;
    ++iterations;
    const MicroBatch batch = TwoSamples();
    EXPECT_EQ(range.args.at("tokens"),
              2 * (batch.lengths[0] + batch.lengths[1]));
    EXPECT_GT(range.args.at("lm_loss"), 0);
  }
  EXPECT_EQ(iterations, 6);
  for (const json& event : events) {
    if (event.at("ph") != "C") continue;
    ++counters;
    EXPECT_GT(event.at("args").at("bytes"), 0);
  }
  EXPECT_GT(counters, 100);
}

}  // namespace
}  // namespace mimo
