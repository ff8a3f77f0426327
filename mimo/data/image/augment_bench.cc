// The cost of one training view: it is paid for each sample.
#include "benchmark/benchmark.h"
#include "mimo/data/image/augment.h"

namespace mimo {
namespace {

void BM_Augment(benchmark::State& state) {
  const int size = state.range(0);
  const Image image(size * 3 / 2, size * 2, 4);
  uint64_t visit = 0;
  for (auto _ : state) {
    PhiloxSequence random(1, ++visit);
    benchmark::DoNotOptimize(Augment(image, size, kTrainAugment, random));
  }
}
BENCHMARK(BM_Augment)->Arg(32)->Arg(336);

}  // namespace
}  // namespace mimo
