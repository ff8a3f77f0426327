#include "mimo/autograd/profiler.h"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

namespace mimo {
namespace {

enum Timeline { kHost, kDevice };

double Seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

Profiler::Profiler(Stream stream) : stream_(stream) {
  Synchronize(stream_);
  origin_ = RecordEvent(stream_);
}

std::string Profiler::Trace() const {
  Synchronize(stream_);
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
    nlohmann::json values = nlohmann::json::object();
    for (const auto& [name, value] : range.values) values[name] = value;
    for (Timeline timeline : {kHost, kDevice}) {
      const double begin = at(range.begin, timeline);
      const double end = at(range.end, timeline);
      events.push_back({{"ph", "X"},
                        {"pid", 0},
                        {"tid", timeline},
                        {"name", range.name},
                        {"ts", begin / 1e3},  // microseconds
                        {"dur", (end - begin) / 1e3},
                        {"args", values}});
    }
    events.push_back({{"ph", "C"},
                      {"pid", 0},
                      {"name", "live bytes"},
                      {"ts", at(range.end, kHost) / 1e3},
                      {"args", {{"bytes", range.live_bytes}}}});
  }
  return nlohmann::json({{"traceEvents", events}}).dump();
}

ProfileRange::ProfileRange(const Context& ctx, std::string name) : ctx_(ctx) {
  BeginRange(ctx.compute.device, name);
  if (ctx.profiler == nullptr) return;
  range_.name = std::move(name);
  range_.begin = RecordEvent(ctx.compute);
}

ProfileRange::~ProfileRange() {
  EndRange(ctx_.compute.device);
  if (ctx_.profiler == nullptr) return;
  range_.end = RecordEvent(ctx_.compute);
  range_.live_bytes = ctx_.allocator->live_bytes();
  ctx_.profiler->ranges_.push_back(std::move(range_));
}

void ProfileRange::Set(std::string name, double value) {
  if (ctx_.profiler == nullptr) return;
  range_.values.emplace_back(std::move(name), value);
}

}  // namespace mimo
