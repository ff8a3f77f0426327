// The floor of an op that only moves memory: what a copy reaches here.
#ifndef MIMO_KERNELS_TESTING_BENCH_FLOOR_H_
#define MIMO_KERNELS_TESTING_BENCH_FLOOR_H_

#include "benchmark/benchmark.h"

namespace mimo {

// Bytes a second of memcpy on NumThreads() threads between buffers of 128 MiB,
// reads and writes counted; the best of ten, measured once a process.
double CopyBytesPerSecond();

// Adds the columns GB (a second) and copy% (share of the copy floor, behind
// which the console writes /s too) to a finished benchmark; `bytes` is an
// iteration's by the op's header.
void ReportBytes(benchmark::State& state, double bytes);

}  // namespace mimo

#endif  // MIMO_KERNELS_TESTING_BENCH_FLOOR_H_
