#include "mimo/tensor/allocator.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/log/check.h"
#include "absl/numeric/bits.h"
#include "absl/synchronization/mutex.h"

namespace mimo {
namespace {

constexpr int64_t kAlignment = 64;

// Classes are powers of two cut in eight: at most 12.5 % of a block is unused.
int64_t SizeClass(int64_t bytes) {
  const int64_t step = std::max(
      kAlignment,
      static_cast<int64_t>(absl::bit_ceil(static_cast<uint64_t>(bytes)) / 16));
  return (bytes + step - 1) / step * step;
}

}  // namespace

struct Allocator::State {
  ~State() {
    for (auto& [size, blocks] : free) {
      for (void* block : blocks) std::free(block);
    }
  }
  mutable absl::Mutex mutex;
  std::map<int64_t, std::vector<void*>> free ABSL_GUARDED_BY(mutex);
  AllocatorStats stats ABSL_GUARDED_BY(mutex);
};

Allocator::Allocator() : state_(std::make_shared<State>()) {}

std::shared_ptr<void> Allocator::Allocate(int64_t bytes) {
  CHECK_GE(bytes, 0);
  if (bytes == 0) return nullptr;
  const int64_t size = SizeClass(bytes);
  void* block = nullptr;
  {
    absl::MutexLock lock(&state_->mutex);
    AllocatorStats& stats = state_->stats;
    stats.live_bytes += size;
    stats.peak_bytes = std::max(stats.peak_bytes, stats.live_bytes);
    std::vector<void*>& blocks = state_->free[size];
    if (blocks.empty()) {
      stats.reserved_bytes += size;
    } else {
      block = blocks.back();
      blocks.pop_back();
    }
  }
  if (block == nullptr) block = std::aligned_alloc(kAlignment, size);
  CHECK(block != nullptr) << "out of memory: " << size << " bytes wanted, "
                          << stats().live_bytes << " in use";
  return std::shared_ptr<void>(block, [state = state_, size](void* p) {
    absl::MutexLock lock(&state->mutex);
    state->free[size].push_back(p);
    state->stats.live_bytes -= size;
  });
}

AllocatorStats Allocator::stats() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->stats;
}

void Allocator::ResetPeak() {
  absl::MutexLock lock(&state_->mutex);
  state_->stats.peak_bytes = state_->stats.live_bytes;
}

}  // namespace mimo
