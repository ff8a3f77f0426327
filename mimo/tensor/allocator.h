// Allocator: memory of one device, kept for reuse.
//
// Freed blocks go to a list of their size class and come back from it, so a
// steady training step asks the system for nothing. Blocks are 64-byte aligned.
// Thread-safe. Blocks keep the allocator's state alive, not the other way
// round.
#ifndef MIMO_MIMO_TENSOR_ALLOCATOR_H_
#define MIMO_MIMO_TENSOR_ALLOCATOR_H_

#include <cstdint>
#include <memory>

namespace mimo {

struct AllocatorStats {
  int64_t live_bytes = 0;      // in use now
  int64_t peak_bytes = 0;      // the most that was in use
  int64_t reserved_bytes = 0;  // taken from the system: in use or kept
};

class Allocator {
 public:
  Allocator();

  // Uninitialised memory; returned to this allocator when the last owner goes.
  std::shared_ptr<void> Allocate(int64_t bytes);

  AllocatorStats stats() const;
  void ResetPeak();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_TENSOR_ALLOCATOR_H_
