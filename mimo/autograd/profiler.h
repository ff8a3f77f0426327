// Profiler: named, nested ranges of work, each on two timelines: when the host
// enqueued it, and when the device did it (on the CPU they are one).
//
// The device's times come from events recorded on the ranges' streams at their
// ends, so nothing waits before they are asked for. Work that is being captured
// cannot be profiled.
//
// Format: the Trace Event Format's complete ("X") and counter ("C") events.
#ifndef MIMO_MIMO_AUTOGRAD_PROFILER_H_
#define MIMO_MIMO_AUTOGRAD_PROFILER_H_

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/base/device.h"
#include "mimo/autograd/context.h"

namespace mimo {

class Profiler {
 public:
  // `stream` is where most work is. Waits for it once, so that both timelines
  // begin together. Without `modules`, ranges of kModule are left out.
  explicit Profiler(Stream stream, bool modules = true);

  // Of all ranges that end from now on.
  void BeginIteration(int64_t iteration) { iteration_ = iteration; }

  // A trace that ui.perfetto.dev and chrome://tracing read: of every ended
  // range an event on "host" and one on "device", and the live bytes of the
  // range's allocator at its end. Waits for the streams.
  std::string Trace() const;
  // What several ranks' traces are made of (mimo/train/run_trace.h): events of
  // the device's timeline, an array, by the machine's steady clock in
  // microseconds; "tid" 0 for `stream`, 1 for any other. Waits for the streams.
  std::string DeviceEvents() const;
  double origin() const;  // by the same clock, when this was made

 private:
  friend class ProfileRange;
  using Value = std::variant<double, std::string>;
  struct Range {
    std::string name;
    int64_t iteration = -1;
    Stream stream;
    Event begin, end;
    int64_t live_bytes;  // at the end
    std::vector<std::pair<std::string, Value>> values;
  };
  Stream stream_;
  bool modules_;
  Event origin_;
  int64_t iteration_ = -1;     // none
  std::vector<Range> ranges_;  // by their ends
};

// A range from here to the end of the scope, for ctx.profiler if there is one,
// and for NVTX.
class ProfileRange {
 public:
  enum Kind { kPhase, kModule };  // the module whose work it is gives the name

  ProfileRange(const Context& ctx, std::string name, Kind kind = kPhase);
  // A meeting: these ranks of the world have the same range, and whoever comes
  // early waits in it for the last.
  ProfileRange(const Context& ctx, std::string name,
               absl::Span<const int> ranks);
  ~ProfileRange();
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;

  // What the viewer shows with the range.
  void Set(absl::string_view name, double value);
  void Set(absl::string_view name, absl::string_view value);

 private:
  Profiler* const profiler_;  // null: nothing is recorded
  const Allocator& allocator_;
  Profiler::Range range_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_PROFILER_H_
