// Profiler: named, nested ranges of work, each on two timelines: when the host
// enqueued it, and when the device did it (on the CPU they are one).
//
// The device's times come from events recorded on the compute stream at the
// ends of the ranges, so nothing waits before Trace(). Work that is being
// captured cannot be profiled.
#ifndef MIMO_MIMO_AUTOGRAD_PROFILER_H_
#define MIMO_MIMO_AUTOGRAD_PROFILER_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/device.h"
#include "mimo/autograd/context.h"

namespace mimo {

class Profiler {
 public:
  // Waits for the stream once, so that both timelines begin together.
  explicit Profiler(Stream stream);

  // A trace that ui.perfetto.dev and chrome://tracing read: of every ended
  // range an event on "host" and one on "device", and the live bytes of the
  // range's allocator at its end. Waits for the stream.
  // Format: the Trace Event Format's complete ("X") and counter ("C") events.
  std::string Trace() const;

 private:
  friend class ProfileRange;
  struct Range {
    std::string name;
    Event begin, end;
    int64_t live_bytes;  // at the end
    std::vector<std::pair<std::string, double>> values;
  };
  Stream stream_;
  Event origin_;
  std::vector<Range> ranges_;  // by their ends
};

// A range from here to the end of the scope, for ctx.profiler if there is one,
// and for NVTX.
class ProfileRange {
 public:
  ProfileRange(const Context& ctx, std::string name);
  ~ProfileRange();
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;

  // A number that the viewer shows with the range.
  void Set(std::string name, double value);

 private:
  const Context& ctx_;
  Profiler::Range range_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_PROFILER_H_
