#include "kernels/base/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

class ParallelTest : public testing::Test {
 protected:
  ~ParallelTest() override { SetNumThreads(threads_); }

 private:
  const int threads_ = NumThreads();
};

TEST_F(ParallelTest, RangesArePartition) {
  for (int threads : {1, 2, 3, 8}) {
    SetNumThreads(threads);
    EXPECT_EQ(NumThreads(), threads);
    for (int64_t n : {0, 1, 2, 7, 64, 1009}) {
      for (int64_t grain : {1, 2, 13, 5000}) {
        absl::Mutex mutex;
        std::vector<std::pair<int64_t, int64_t>> ranges;
        ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
          absl::MutexLock lock(&mutex);
          ranges.emplace_back(begin, end);
        });
        std::sort(ranges.begin(), ranges.end());
        int64_t next = 0;
        for (auto [begin, end] : ranges) {
          ASSERT_EQ(begin, next);
          ASSERT_LT(begin, end);
          ASSERT_TRUE(end == n || end - begin >= grain);
          next = end;
        }
        ASSERT_EQ(next, n);
      }
    }
  }
}

// Every body waits until all threads are in one: fewer would hang the test.
TEST_F(ParallelTest, UsesAllThreads) {
  constexpr int kThreads = 4;
  SetNumThreads(kThreads);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> inside = 0;
    ParallelFor(kThreads * 4, 4, [&](int64_t, int64_t) {
      ++inside;
      while (inside < kThreads) std::this_thread::yield();
    });
    EXPECT_EQ(inside, kThreads);
  }
}

// Also after the workers have gone to sleep, and with writes of every job seen
// by the next one whoever runs it.
TEST_F(ParallelTest, ManySmallJobs) {
  SetNumThreads(3);
  std::vector<int64_t> x(257, 0);
  constexpr int kJobs = 5000;
  for (int job = 0; job < kJobs; ++job) {
    if (job % 1000 == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ParallelFor(x.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) x[i] += i;
    });
  }
  for (int64_t i = 0; i < x.size(); ++i) ASSERT_EQ(x[i], kJobs * i);
}

TEST_F(ParallelTest, NestedCallRunsInItsCallerAlone) {
  SetNumThreads(4);
  std::atomic<int64_t> sum = 0;
  ParallelFor(16, 1, [&](int64_t begin, int64_t end) {
    const std::thread::id caller = std::this_thread::get_id();
    ParallelFor(100, 1, [&](int64_t first, int64_t last) {
      EXPECT_EQ(std::this_thread::get_id(), caller);
      sum += (last - first) * (end - begin);
    });
  });
  EXPECT_EQ(sum, 16 * 100);
}

TEST_F(ParallelTest, SeveralCallersAtOnce) {
  SetNumThreads(3);
  constexpr int kCallers = 4, kJobs = 500;
  std::vector<int64_t> sums(kCallers, 0);
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&sums, c] {
      for (int job = 0; job < kJobs; ++job) {
        std::atomic<int64_t> sum = 0;
        ParallelFor(100, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) sum += i;
        });
        sums[c] += sum;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int64_t sum : sums) EXPECT_EQ(sum, int64_t{kJobs} * 4950);
}

}  // namespace
}  // namespace mimo
