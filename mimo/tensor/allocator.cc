#include "mimo/tensor/allocator.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/log/check.h"
#include "absl/numeric/bits.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "kernels/base/device.h"
#include "kernels/base/out_of_memory.h"

namespace mimo {
namespace {

constexpr int64_t kAlignment = 64;

// Classes are powers of two cut in eight, from 1 MiB in 64: at most 12.5 %, or
// 1.6 %, of a block is unused.
int64_t SizeClass(int64_t bytes) {
  const int64_t pieces = bytes < (1 << 20) ? 16 : 128;
  const int64_t step = std::max(
      kAlignment, static_cast<int64_t>(
                      absl::bit_ceil(static_cast<uint64_t>(bytes)) / pieces));
  return (bytes + step - 1) / step * step;
}

// "language_model.layers.3.mlp" counts with all layers,
// "language_model.layers".
std::string Group(const std::string& tag) {
  if (tag.empty()) return "untagged";
  for (size_t dot = tag.find('.'); dot < tag.size();
       dot = tag.find('.', dot + 1))
    if (absl::ascii_isdigit(tag[dot + 1])) return tag.substr(0, dot);
  return tag;
}

std::string Gib(int64_t bytes) {
  return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30));
}

}  // namespace

struct Allocator::State {
  State(Device device, bool keeps) : device(device), keeps(keeps) {
    absl::MutexLock lock(&all().mutex);
    all().states.insert(this);
  }
  ~State() {
    absl::MutexLock lock(&all().mutex);
    all().states.erase(this);
    FreeKept();
  }

  // The process's.
  struct All {
    All() { SetMemoryHolders(Holders); }
    absl::Mutex mutex;  // before each state's
    std::set<State*> states ABSL_GUARDED_BY(mutex);
  };
  static All& all() {
    static All& all = *new All;
    return all;
  }

  void FreeKept() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (auto& [size, blocks] : kept) {
      for (void* block : blocks) {
        FreeMemory(device, block);
        stats.reserved_bytes -= size;
      }
    }
    kept.clear();
  }

  // From the system; if it has none, after giving back what is kept. Null when
  // it still has none.
  void* Reserve(int64_t size) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    void* block = AllocateMemory(device, size);
    if (block == nullptr && !keeps) {
      FreeKept();
      block = AllocateMemory(device, size);
    }
    if (block != nullptr) stats.reserved_bytes += size;
    return block;
  }

  // What all allocators of a device hold.
  static std::string Holders(Device device) {
    std::map<std::string, int64_t> groups;
    int64_t sum = 0;
    absl::MutexLock lock(&all().mutex);
    for (State* state : all().states) {
      if (state->device != device) continue;
      absl::MutexLock state_lock(&state->mutex);
      for (size_t t = 0; t < state->tags.size(); ++t)
        groups[Group(state->tags[t])] += state->live[t];
      const AllocatorStats& stats = state->stats;
      groups["kept for reuse"] += stats.reserved_bytes - stats.live_bytes;
      sum += stats.reserved_bytes;
    }
    std::vector<std::pair<int64_t, std::string>> largest;
    for (const auto& [group, bytes] : groups)
      if (Gib(bytes) != Gib(0)) largest.emplace_back(-bytes, group);
    std::sort(largest.begin(), largest.end());
    std::string line = absl::StrCat(Gib(sum), " in use");
    for (const auto& [bytes, group] : largest)
      absl::StrAppend(&line, &bytes == &largest[0].first ? ": " : ", ", group,
                      " ", Gib(-bytes));
    return line;
  }

  const Device device;
  const bool keeps;
  mutable absl::Mutex mutex;
  std::map<int64_t, std::vector<void*>> kept ABSL_GUARDED_BY(mutex);
  AllocatorStats stats ABSL_GUARDED_BY(mutex);
  std::vector<std::string> tags ABSL_GUARDED_BY(mutex) = {""};
  std::vector<int64_t> live ABSL_GUARDED_BY(mutex) = {0};  // bytes, by tag
  size_t tag ABSL_GUARDED_BY(mutex) = 0;                   // the current one
};

Allocator::Allocator(Stream stream, bool keeps)
    : stream_(stream), state_(std::make_shared<State>(stream.device, keeps)) {}

std::shared_ptr<void> Allocator::Allocate(int64_t bytes) {
  CHECK_GE(bytes, 0);
  if (bytes == 0) return nullptr;
  const int64_t size = SizeClass(bytes);
  absl::ReleasableMutexLock lock(&state_->mutex);
  std::vector<void*>& blocks = state_->kept[size];
  void* block;
  if (blocks.empty()) {
    block = state_->Reserve(size);
    if (block == nullptr) {
      lock.Release();
      OutOfMemory(stream_.device, absl::StrCat(Gib(size), " wanted"));
    }
  } else {
    block = blocks.back();
    blocks.pop_back();
  }
  AllocatorStats& stats = state_->stats;
  stats.live_bytes += size;
  stats.peak_bytes = std::max(stats.peak_bytes, stats.live_bytes);
  const size_t tag = state_->tag;
  state_->live[tag] += size;
  return std::shared_ptr<void>(block, [state = state_, size, tag](void* p) {
    absl::MutexLock lock(&state->mutex);
    state->kept[size].push_back(p);
    state->stats.live_bytes -= size;
    state->live[tag] -= size;
  });
}

AllocatorStats Allocator::stats() const {
  absl::MutexLock lock(&state_->mutex);
  AllocatorStats stats = state_->stats;
  for (size_t t = 0; t < state_->tags.size(); ++t)
    if (state_->live[t] > 0)
      stats.live_by_tag[state_->tags[t]] = state_->live[t];
  return stats;
}

int64_t Allocator::live_bytes() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->stats.live_bytes;
}

void Allocator::ResetPeak() {
  absl::MutexLock lock(&state_->mutex);
  state_->stats.peak_bytes = state_->stats.live_bytes;
}

void Allocator::ReleaseKept() {
  absl::MutexLock lock(&state_->mutex);
  state_->FreeKept();
}

AllocationTag::AllocationTag(Allocator& allocator, absl::string_view tag)
    : allocator_(allocator) {
  Allocator::State& state = *allocator.state_;
  absl::MutexLock lock(&state.mutex);
  before_ = state.tag;
  state.tag =
      std::find(state.tags.begin(), state.tags.end(), tag) - state.tags.begin();
  if (state.tag == state.tags.size()) {
    state.tags.emplace_back(tag);
    state.live.push_back(0);
  }
}

AllocationTag::~AllocationTag() {
  absl::MutexLock lock(&allocator_.state_->mutex);
  allocator_.state_->tag = before_;
}

}  // namespace mimo
