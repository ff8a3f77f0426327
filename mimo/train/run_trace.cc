#include "mimo/train/run_trace.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace mimo {
namespace {

using nlohmann::json;

// Changes with every start of a machine.
std::string Machine() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id;
}

double Begin(const json& event) { return event["ts"]; }
double End(const json& event) {
  return event["ts"].get<double>() + event["dur"].get<double>();
}
bool IsForward(const json& event) { return event["name"] == "forward"; }
bool IsWork(const json& event) {
  return IsForward(event) || event["name"] == "backward";
}

// All ranks' events, each rank's by their ends, from 0 on.
std::vector<std::vector<json>> OnOneClock(
    const std::vector<std::string>& parts) {
  std::vector<std::vector<json>> ranks;
  json first;
  double start = std::numeric_limits<double>::infinity();
  for (const std::string& text : parts) {
    json part = json::parse(text);
    if (first.is_null()) first = part;
    const double shift =
        part["machine"] == first["machine"]
            ? 0
            : first["begin"].get<double>() - part["begin"].get<double>();
    ranks.push_back(part["events"]);
    for (json& event : ranks.back()) {
      event["pid"] = ranks.size() - 1;
      event["ts"] = Begin(event) + shift;
      start = std::min(start, Begin(event));
    }
  }
  // Whole nanoseconds, so that what nests still does.
  for (std::vector<json>& events : ranks) {
    for (json& event : events)
      event["ts"] = std::round(1e3 * (Begin(event) - start)) / 1e3;
  }
  return ranks;
}

// The waits in the meetings.
std::vector<json> IdleTimes(const std::vector<std::vector<json>>& ranks) {
  // By what it is, and which of those of a rank.
  std::map<std::pair<std::string, int>, std::vector<const json*>> meetings;
  for (const std::vector<json>& events : ranks) {
    std::map<std::string, int> count;
    for (const json& event : events) {
      if (!event["args"].contains("ranks")) continue;
      const std::string what =
          absl::StrCat(event["name"].get<std::string>(), event["args"].dump());
      meetings[{what, count[what]++}].push_back(&event);
    }
  }
  std::vector<json> waits;
  for (const auto& [what, events] : meetings) {
    const json& last = **std::max_element(
        events.begin(), events.end(),
        [](const json* a, const json* b) { return Begin(*a) < Begin(*b); });
    for (const json* event : events) {
      const double until = std::min(End(*event), Begin(last));
      if (until <= Begin(*event)) continue;
      json idle = *event;
      idle["name"] = "idle";
      idle["dur"] = until - Begin(*event);
      idle["args"] = {{"for_rank", last["pid"]}};
      waits.push_back(std::move(idle));
    }
  }
  return waits;
}

double BubbleShare(const std::vector<std::vector<json>>& ranks) {
  struct Phase {
    double begin = std::numeric_limits<double>::infinity(), end = 0, busy = 0;
    std::set<int> ranks;
  };
  std::map<int64_t, Phase> iterations;
  for (const std::vector<json>& events : ranks) {
    for (const json& event : events) {
      if (!IsWork(event)) continue;
      Phase& phase = iterations[event["args"]["iteration"]];
      phase.begin = std::min(phase.begin, Begin(event));
      phase.end = std::max(phase.end, End(event));
      phase.busy += event["dur"].get<double>();
      phase.ranks.insert(event["pid"].get<int>());
    }
  }
  double busy = 0, all = 0;
  for (const auto& [iteration, phase] : iterations) {
    busy += phase.busy;
    all += (phase.end - phase.begin) * phase.ranks.size();
  }
  return all > 0 ? 1 - busy / all : 0;
}

StageTimes MeanTimes(const std::vector<std::vector<json>>& ranks) {
  std::map<std::tuple<std::string, int, bool>, std::pair<double, int>> sums;
  for (const std::vector<json>& events : ranks) {
    for (const json& event : events) {
      if (!IsWork(event)) continue;
      const json& args = event["args"];
      auto& [sum, count] =
          sums[{args["module"], args["stage"], IsForward(event)}];
      sum += event["dur"].get<double>() / 1e3;
      ++count;
    }
  }
  StageTimes times;
  for (const auto& [what, sum] : sums) {
    const auto& [module, stage, forward] = what;
    StageTime& time = times[{module, stage}];
    (forward ? time.forward : time.backward) = sum.first / sum.second;
  }
  return times;
}

// "rank 0: images.0 language.1", of what it has.
std::string NameOf(int rank, const std::vector<json>& events) {
  std::set<std::string> stages;
  for (const json& event : events) {
    if (!IsForward(event)) continue;
    const json& args = event["args"];
    stages.insert(absl::StrCat(args["module"].get<std::string>(), ".",
                               args["stage"].get<int>()));
  }
  return absl::StrCat("rank ", rank, ": ",
                      stages.empty() ? "idle" : absl::StrJoin(stages, " "));
}

json Metadata(int pid, int tid, const char* name, json args) {
  return {{"ph", "M"},
          {"pid", pid},
          {"tid", tid},
          {"name", name},
          {"args", std::move(args)}};
}

}  // namespace

std::string TracePart(const Profiler& profiler) {
  return json({{"machine", Machine()},
               {"begin", profiler.origin()},
               {"events", json::parse(profiler.DeviceEvents())}})
      .dump();
}

RunTrace MergeTraces(const std::vector<std::string>& parts) {
  const std::vector<std::vector<json>> ranks = OnOneClock(parts);
  std::vector<json> all, ranges;
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank) {
    const std::string name = NameOf(rank, ranks[rank]);
    all.push_back(Metadata(rank, 0, "process_name", {{"name", name}}));
    all.push_back(
        Metadata(rank, 0, "process_sort_index", {{"sort_index", rank}}));
    for (int tid : {0, 1}) {
      all.push_back(
          Metadata(rank, tid, "thread_name",
                   {{"name", tid == 0 ? "compute" : "communication"}}));
    }
    ranges.insert(ranges.end(), ranks[rank].begin(), ranks[rank].end());
  }
  for (json& idle : IdleTimes(ranks)) ranges.push_back(std::move(idle));
  // Viewers take what comes later to be inside.
  std::stable_sort(
      ranges.begin(), ranges.end(), [](const json& a, const json& b) {
        return std::pair(Begin(a), -End(a)) < std::pair(Begin(b), -End(b));
      });
  all.insert(all.end(), ranges.begin(), ranges.end());
  return {.file = json({{"traceEvents", all}}).dump(),
          .bubble_share = BubbleShare(ranks),
          .times = MeanTimes(ranks)};
}

}  // namespace mimo
