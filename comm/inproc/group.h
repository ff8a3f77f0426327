// InprocGroup: the memory that the threads of a group share.
#ifndef MIMO_COMM_INPROC_GROUP_H_
#define MIMO_COMM_INPROC_GROUP_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "comm/base/operation.h"
#include "comm/inproc/gate.h"

namespace mimo {

struct InprocGroup {
  InprocGroup(std::string name, std::vector<int> members);

  int size() const { return static_cast<int>(members.size()); }
  std::string Title() const;  // "group dp of ranks [0, 2]"

  // The group fails: all that wait return. Only the first reason counts.
  void Fail(const absl::Status& why);
  // No call of `rank` comes any more: collectives fail, and transfers with it.
  void Leave(int rank);
  // Why `operation` of `rank` cannot end: the group has failed or a rank left.
  absl::Status Why(const Operation& operation, int rank);
  // OK, or the first difference between what the ranks, all at the gate, call.
  absl::Status Difference() const;

  // What a rank brings to a collective. Written by the rank before it enters
  // the gate, read by all until they leave it.
  struct alignas(64) Slot {
    Operation operation;
    const void* send = nullptr;
    void* recv = nullptr;
    absl::Span<const int64_t> send_counts, recv_counts;  // of an all-to-all
    const std::string* name = nullptr;                   // of a split
    absl::Span<const std::vector<int>> groups;           // of a split
    std::shared_ptr<InprocGroup> part;  // made by the part's rank 0
  };

  // What one rank sends to one other: filled by the sender, taken by the
  // receiver, emptied by the sender.
  struct alignas(64) Channel {
    enum State { kEmpty, kFull, kTaking, kTaken };
    std::atomic<State> state{kEmpty};
    const void* data = nullptr;
    int64_t count = 0;
    DType dtype = DType::kUInt8;
  };

  // Rings when something happened for a rank's transfers: changes, and wakes.
  struct alignas(64) Bell {
    std::atomic<uint32_t> rings{0};
    void Ring() {
      rings.fetch_add(1, std::memory_order_acq_rel);
      rings.notify_one();
    }
  };

  Channel& channel(int from, int to) { return channels[from * size() + to]; }

  const std::string name;
  const std::vector<int> members;  // ranks of the world
  Gate gate;
  std::vector<Slot> slots;              // [size]
  std::vector<Channel> channels;        // [size, size] sender, receiver
  std::vector<Bell> bells;              // [size]
  std::vector<std::atomic<bool>> left;  // [size]
  std::atomic<bool> failed{false};

 private:
  absl::Mutex mutex_;
  absl::Status why_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mimo

#endif  // MIMO_COMM_INPROC_GROUP_H_
