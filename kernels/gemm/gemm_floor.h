// The floor of an op that is made of matrix products: this machine's sgemm.
#ifndef MIMO_KERNELS_GEMM_GEMM_FLOOR_H_
#define MIMO_KERNELS_GEMM_GEMM_FLOOR_H_

#include "benchmark/benchmark.h"

namespace mimo {

// Flops a second of bare OpenBLAS's sgemm on NumThreads() threads of its own,
// 1024 x 1024 x 1024; the best of ten, measured once a process.
double SgemmFlopsPerSecond();

// Adds the columns GFLOP and sgemm% (share of the floor) to a finished
// benchmark; `flops` is an iteration's by the op's header.
void ReportFlops(benchmark::State& state, double flops);

}  // namespace mimo

#endif  // MIMO_KERNELS_GEMM_GEMM_FLOOR_H_
