// Gate: where the ranks of a group wait for each other, without a lock.
#ifndef MIMO_COMM_INPROC_GATE_H_
#define MIMO_COMM_INPROC_GATE_H_

#include <atomic>
#include <cstdint>

namespace mimo {

class Gate {
 public:
  explicit Gate(int ranks) : ranks_(ranks) {}  // at most 32767

  // Returns when all ranks have entered: true. False, for all of them alike, if
  // the gate was closed before the last one entered.
  bool Enter() { return Pass(/*heed_closing=*/true); }

  // After an Enter that was true. Returns when all ranks have come here, which
  // no closing prevents: until then they use each other's memory.
  void Leave() { Pass(/*heed_closing=*/false); }

  void Close() {
    state_.fetch_or(kClosed, std::memory_order_acq_rel);
    state_.notify_all();
  }

 private:
  // One word, so that whether a round was completed or closed is decided once:
  // bit 0 closed, 1 to 15 ranks that came, 16 to 31 rounds completed.
  static constexpr uint32_t kClosed = 1, kOneRank = 2, kOneRound = 1 << 16;

  bool Pass(bool heed_closing) {
    uint32_t state = state_.load(std::memory_order_acquire), next;
    bool last;
    do {
      if (heed_closing && (state & kClosed)) return false;
      last = ((state & (kOneRound - 1)) >> 1) + 1 == ranks_;
      next = last ? (state & ~(kOneRound - 1)) + kOneRound + (state & kClosed)
                  : state + kOneRank;
    } while (!state_.compare_exchange_weak(
        state, next, std::memory_order_acq_rel, std::memory_order_acquire));
    if (last) {
      state_.notify_all();
      return true;
    }
    const uint32_t round = state / kOneRound;
    while (true) {
      state = state_.load(std::memory_order_acquire);
      if (state / kOneRound != round) return true;
      if (heed_closing && (state & kClosed)) return false;
      state_.wait(state, std::memory_order_acquire);
    }
  }

  const uint32_t ranks_;
  std::atomic<uint32_t> state_{0};
};

}  // namespace mimo

#endif  // MIMO_COMM_INPROC_GATE_H_
