#include "mimo/train/run_trace.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace mimo {
namespace {

using nlohmann::json;

json Event(const std::string& name, double begin, double end, json args) {
  args["iteration"] = 3;
  return {{"ph", "X"},   {"pid", 0},           {"tid", 0},    {"name", name},
          {"ts", begin}, {"dur", end - begin}, {"args", args}};
}

json Work(const std::string& name, const std::string& module, double begin,
          double end) {
  return Event(name, begin, end,
               {{"module", module}, {"stage", 0}, {"micro_batch", 0}});
}

std::string Part(const std::string& machine, double begin,
                 const std::vector<json>& events) {
  return json({{"machine", machine}, {"begin", begin}, {"events", events}})
      .dump();
}

const json kForward = {{"ranks", "0,1"}, {"forward", 0}};
const json kBackward = {{"ranks", "0,1"}, {"backward", 0}};

// The second rank's clock is 5000 behind.
std::vector<std::string> TwoMachines() {
  return {Part("a", 9000,
               {Work("forward", "images", 10000, 13000),
                Event("transfer", 13000, 13500, kForward),
                Event("transfer", 13500, 20000, kBackward),
                Work("backward", "images", 20000, 22000)}),
          Part("b", 4000,
               {Event("transfer", 6000, 8500, kForward),
                Work("forward", "language", 8500, 10500),
                Work("backward", "language", 10500, 14500),
                Event("transfer", 14500, 15000, kBackward)})};
}

TEST(RunTrace, BubbleAndTimes) {
  const RunTrace trace = MergeTraces(TwoMachines());
  EXPECT_NEAR(trace.bubble_share, 1 - (3 + 2 + 2 + 4) / 24., 1e-12);
  const StageTime images = trace.times.at({"images", 0});
  EXPECT_NEAR(images.forward, 3, 1e-12);
  EXPECT_NEAR(images.backward, 2, 1e-12);
  const StageTime language = trace.times.at({"language", 0});
  EXPECT_NEAR(language.forward, 2, 1e-12);
  EXPECT_NEAR(language.backward, 4, 1e-12);
  EXPECT_EQ(trace.times.size(), 2u);
}

TEST(RunTrace, IdleUntilTheLastComes) {
  const json events =
      json::parse(MergeTraces(TwoMachines()).file)["traceEvents"];
  std::vector<std::vector<double>> idle;
  for (const json& event : events) {
    if (event["name"] != "idle") continue;
    idle.push_back(
        {event["pid"], event["ts"], event["dur"], event["args"]["for_rank"]});
  }
  // Rank 0 is the last with the activation, rank 1 with the gradient. In the
  // file they are by time.
  EXPECT_EQ(idle, (std::vector<std::vector<double>>{{1, 1000, 2000, 0},
                                                    {0, 3500, 6000, 1}}));
}

TEST(RunTrace, RanksAreNamedByWhatTheyHave) {
  std::vector<std::string> parts = TwoMachines();
  parts.push_back(Part("a", 9000, {}));
  const json events = json::parse(MergeTraces(parts).file)["traceEvents"];
  std::vector<std::string> names;
  for (const json& event : events)
    if (event["name"] == "process_name") names.push_back(event["args"]["name"]);
  EXPECT_EQ(names,
            (std::vector<std::string>{"rank 0: images.0", "rank 1: language.0",
                                      "rank 2: idle"}));
}

// Two sums of one iteration are two meetings.
TEST(RunTrace, MeetingsOfOneNameGoInOrder) {
  const json sum = {{"ranks", "0,1"}};
  const RunTrace trace = MergeTraces(
      {Part("a", 0, {Event("sum", 0, 5, sum), Event("sum", 10, 11, sum)}),
       Part("a", 2, {Event("sum", 4, 5, sum), Event("sum", 6, 11, sum)})});
  const json events = json::parse(trace.file)["traceEvents"];
  double idle[2] = {};
  for (const json& event : events) {
    if (event["name"] == "idle")
      idle[event["pid"].get<int>()] += event["dur"].get<double>();
  }
  EXPECT_EQ(idle[0], 4);
  EXPECT_EQ(idle[1], 4);
  EXPECT_EQ(trace.bubble_share, 0);
}

}  // namespace
}  // namespace mimo
