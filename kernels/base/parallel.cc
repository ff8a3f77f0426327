// One pool for the process. A job is open while its caller works on it; a
// worker that notices joins it, and the caller waits only for those that did,
// so a worker that sleeps or is not scheduled never delays anyone. Workers
// look for the next job for a while before they sleep: the gaps between a
// step's kernels are shorter than waking up.
#include "kernels/base/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "absl/strings/numbers.h"

namespace mimo {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kSpins = 1000;           // pauses: 20 to 50 us
constexpr int64_t kChunksAThread = 4;  // for an even load

thread_local bool in_body = false;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int DefaultThreads() {
  if (const char* text = std::getenv("MIMO_THREADS"); text != nullptr) {
    int threads = 0;
    if (!absl::SimpleAtoi(text, &threads) || threads < 1 ||
        threads > kMaxThreads) {
      LOG(QFATAL) << "MIMO_THREADS: found \"" << text
                  << "\", wanted a number from 1 to " << kMaxThreads;
    }
    return threads;
  }
  cpu_set_t cpus;
  if (sched_getaffinity(0, sizeof(cpus), &cpus) != 0) return 1;
  return std::clamp(CPU_COUNT(&cpus), 1, kMaxThreads);
}

struct Job {
  const absl::FunctionRef<void(int64_t, int64_t)> body;
  const int64_t n, size;         // a chunk is `size` items
  std::atomic<int64_t> next{0};  // chunk

  void Work() {
    in_body = true;
    for (;;) {
      const int64_t begin = next.fetch_add(1, std::memory_order_relaxed) * size;
      if (begin >= n) break;
      body(begin, std::min(n, begin + size));
    }
    in_body = false;
  }
};

class Pool {
 public:
  // Never destroyed: its threads may outlive main.
  static Pool& Get() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  int threads() const { return threads_.load(std::memory_order_relaxed); }

  void SetThreads(int threads) {
    while (busy_.exchange(true, std::memory_order_acquire)) Pause();
    threads_.store(threads, std::memory_order_relaxed);
    for (; workers_ < threads - 1; ++workers_)
      std::thread([this, id = workers_] { Worker(id); }).detach();
    busy_.store(false, std::memory_order_release);
  }

  // False, with nothing done, when another thread has the pool.
  bool Run(Job& job) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    job_ = &job;
    state_.store((state_.load(std::memory_order_relaxed) + kOneJob) | kOpen,
                 std::memory_order_release);
    state_.notify_all();
    job.Work();
    state_.fetch_and(~kOpen, std::memory_order_relaxed);
    for (int i = 0; (state_.load(std::memory_order_acquire) & kActiveMask) != 0;
         ++i) {
      i < kSpins ? Pause() : std::this_thread::yield();
    }
    busy_.store(false, std::memory_order_release);
    return true;
  }

 private:
  // state_: the number of workers in the job, whether more may join, and a
  // count of jobs, by which a worker knows a new one. The count may wrap: at
  // worst a worker misses a job.
  static constexpr uint32_t kActiveMask = 0x7ff;
  static constexpr uint32_t kOpen = 0x800;
  static constexpr uint32_t kOneJob = 0x1000;
  static_assert(kMaxThreads < kActiveMask);

  Pool() { SetThreads(DefaultThreads()); }

  void Worker(int id) {
    uint32_t seen = 0;  // state_ without the active count
    for (;;) {
      uint32_t state = state_.load(std::memory_order_relaxed);
      for (int i = 0; i < kSpins && !IsNews(state, seen, id); ++i) {
        Pause();
        state = state_.load(std::memory_order_relaxed);
      }
      if (!IsNews(state, seen, id)) {
        state_.wait(state, std::memory_order_relaxed);
      } else if (state_.compare_exchange_strong(state, state + 1,
                                                std::memory_order_acquire)) {
        job_->Work();
        state_.fetch_sub(1, std::memory_order_release);
        seen = state & ~kActiveMask;
      }
    }
  }

  bool IsNews(uint32_t state, uint32_t seen, int id) const {
    return (state & kOpen) != 0 && (state & ~kActiveMask) != seen &&
           id < threads() - 1;
  }

  std::atomic<bool> busy_{false};  // a caller has the pool
  std::atomic<int> threads_{1};
  int workers_ = 0;
  Job* job_ = nullptr;
  std::atomic<uint32_t> state_{0};
};

}  // namespace

int NumThreads() { return Pool::Get().threads(); }

void SetNumThreads(int threads) {
  CHECK(threads >= 1 && threads <= kMaxThreads) << "threads: " << threads;
  CHECK(!in_body) << "SetNumThreads inside a ParallelFor";
  Pool::Get().SetThreads(threads);
}

void ParallelFor(int64_t n, int64_t grain,
                 absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  CHECK_GT(grain, 0);
  if (n <= 0) return;
  if (n > grain && !in_body) {
    const int64_t threads = NumThreads();
    const int64_t chunks = threads * kChunksAThread;
    Job job{body, n, std::max(grain, (n + chunks - 1) / chunks)};
    if (threads > 1 && job.size < n && Pool::Get().Run(job)) return;
  }
  body(0, n);
}

}  // namespace mimo
