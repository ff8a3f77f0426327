#include "mimo/autograd/profiler.h"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_join.h"

namespace mimo {
namespace {

enum Timeline { kHost, kDevice };

double Seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

// From `begin` to `end`, in nanoseconds.
nlohmann::json Complete(const std::string& name, int tid, double begin,
                        double end, const nlohmann::json& values) {
  return {{"ph", "X"},
          {"pid", 0},
          {"tid", tid},
          {"name", name},
          {"ts", begin / 1e3},  // microseconds
          {"dur", (end - begin) / 1e3},
          {"args", values}};
}

template <typename Range>
nlohmann::json Args(const Range& range) {
  nlohmann::json values = nlohmann::json::object();
  if (range.iteration >= 0) values["iteration"] = range.iteration;
  for (const auto& [name, value] : range.values)
    std::visit([&](const auto& v) { values[name] = v; }, value);
  return values;
}

}  // namespace

Profiler::Profiler(Stream stream, bool modules)
    : stream_(stream), modules_(modules) {
  Synchronize(stream_);
  origin_ = RecordEvent(stream_);
}

double Profiler::origin() const {
  return 1e6 * Seconds(origin_.host.time_since_epoch());
}

std::string Profiler::Trace() const {
  nlohmann::json events = nlohmann::json::array();
  for (const auto& [id, name] : {std::pair(kHost, "host"), {kDevice, "device"}})
    events.push_back({{"ph", "M"},
                      {"pid", 0},
                      {"tid", id},
                      {"name", "thread_name"},
                      {"args", {{"name", name}}}});
  // Nanoseconds since the origin: whole, so that what nests still does.
  const auto at = [&](const Event& event, Timeline timeline) {
    const double seconds = timeline == kHost
                               ? Seconds(event.host - origin_.host)
                               : SecondsBetween(origin_, event);
    return std::round(1e9 * seconds);
  };
  for (const Range& range : ranges_) {
    Synchronize(range.stream);
    for (Timeline timeline : {kHost, kDevice}) {
      events.push_back(Complete(range.name, timeline, at(range.begin, timeline),
                                at(range.end, timeline), Args(range)));
    }
    events.push_back({{"ph", "C"},
                      {"pid", 0},
                      {"name", "live bytes"},
                      {"ts", at(range.end, kHost) / 1e3},
                      {"args", {{"bytes", range.live_bytes}}}});
  }
  return nlohmann::json({{"traceEvents", events}}).dump();
}

std::string Profiler::DeviceEvents() const {
  const auto at = [&](const Event& event) {
    return std::round(1e3 * origin() + 1e9 * SecondsBetween(origin_, event));
  };
  nlohmann::json events = nlohmann::json::array();
  for (const Range& range : ranges_) {
    Synchronize(range.stream);
    events.push_back(Complete(range.name, range.stream.raw != stream_.raw,
                              at(range.begin), at(range.end), Args(range)));
  }
  return events.dump();
}

ProfileRange::ProfileRange(const Context& ctx, std::string name, Kind kind)
    : profiler_(ctx.profiler != nullptr &&
                        (kind == kPhase || ctx.profiler->modules_)
                    ? ctx.profiler
                    : nullptr),
      allocator_(*ctx.allocator),
      range_{.stream = ctx.compute} {
  BeginRange(range_.stream.device, name);
  if (profiler_ == nullptr) return;
  range_.name = std::move(name);
  range_.begin = RecordEvent(range_.stream);
}

ProfileRange::ProfileRange(const Context& ctx, std::string name,
                           absl::Span<const int> ranks)
    : ProfileRange(ctx, std::move(name)) {
  if (profiler_ != nullptr) Set("ranks", absl::StrJoin(ranks, ","));
}

ProfileRange::~ProfileRange() {
  EndRange(range_.stream.device);
  if (profiler_ == nullptr) return;
  range_.iteration = profiler_->iteration_;
  range_.end = RecordEvent(range_.stream);
  range_.live_bytes = allocator_.live_bytes();
  profiler_->ranges_.push_back(std::move(range_));
}

void ProfileRange::Set(absl::string_view name, double value) {
  if (profiler_ == nullptr) return;
  range_.values.emplace_back(name, value);
}

void ProfileRange::Set(absl::string_view name, absl::string_view value) {
  if (profiler_ == nullptr) return;
  range_.values.emplace_back(name, std::string(value));
}

}  // namespace mimo
