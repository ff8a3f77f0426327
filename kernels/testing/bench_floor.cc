#include "kernels/testing/bench_floor.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/base/parallel.h"

namespace mimo {
namespace {

double MeasureCopy() {
  constexpr int64_t kBytes = int64_t{128} << 20;
  const std::vector<char> from(kBytes, 1);
  std::vector<char> to(kBytes);
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ParallelFor(kBytes, 1 << 20, [&](int64_t begin, int64_t end) {
      std::memcpy(to.data() + begin, from.data() + begin, end - begin);
    });
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    benchmark::DoNotOptimize(to.data());
    best = std::max(best, 2 * kBytes / elapsed.count());
  }
  return best;
}

}  // namespace

double CopyBytesPerSecond() {
  static const double rate = MeasureCopy();
  return rate;
}

void ReportBytes(benchmark::State& state, double bytes) {
  using benchmark::Counter;
  const double total = bytes * static_cast<double>(state.iterations());
  state.counters["GB"] = Counter(total * 1e-9, Counter::kIsRate);
  state.counters["copy%"] =
      Counter(100 * total / CopyBytesPerSecond(), Counter::kIsRate);
}

}  // namespace mimo
