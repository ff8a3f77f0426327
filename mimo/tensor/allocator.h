// Allocator: memory of one device, kept for reuse.
//
// Freed blocks go to a list of their size class and come back from it, so a
// steady training step asks the system for nothing. A block may come back while
// work that read it is still queued: all work on it is queued on the
// allocator's stream. Blocks are 64-byte aligned (256 on a GPU). Thread-safe.
// Blocks keep the allocator's state alive, not the other way round.
//
// When the device has no more, the process says so in one line, with the bytes
// that all its allocators hold there by tag, and exits with code 2.
#ifndef MIMO_MIMO_TENSOR_ALLOCATOR_H_
#define MIMO_MIMO_TENSOR_ALLOCATOR_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "kernels/base/stream.h"

namespace mimo {

struct AllocatorStats {
  int64_t live_bytes = 0;      // in use now
  int64_t peak_bytes = 0;      // the most that was in use
  int64_t reserved_bytes = 0;  // taken from the system: in use or kept
  std::map<std::string, int64_t> live_by_tag;
};

class Allocator {
 public:
  // Of the stream's device. With `keeps` it gives nothing back to the system,
  // also when that has no more, until ReleaseKept: captured work has addresses.
  explicit Allocator(Stream stream = Stream(), bool keeps = false);

  // Uninitialised memory; returned to this allocator when the last owner goes.
  std::shared_ptr<void> Allocate(int64_t bytes);

  Stream stream() const { return stream_; }
  AllocatorStats stats() const;
  int64_t live_bytes() const;  // stats().live_bytes
  void ResetPeak();
  // Gives the system back what is kept and not in use.
  void ReleaseKept();

 private:
  friend class AllocationTag;
  struct State;

  Stream stream_;
  std::shared_ptr<State> state_;
};

// What is allocated while one is alive counts for `tag` (a module's path); the
// innermost wins.
class AllocationTag {
 public:
  AllocationTag(Allocator& allocator, absl::string_view tag);
  ~AllocationTag();
  AllocationTag(const AllocationTag&) = delete;
  AllocationTag& operator=(const AllocationTag&) = delete;

 private:
  Allocator& allocator_;
  size_t before_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_TENSOR_ALLOCATOR_H_
