// The floor of an op that is made of matrix products: this machine's own.
#ifndef MIMO_KERNELS_GEMM_GEMM_FLOOR_H_
#define MIMO_KERNELS_GEMM_GEMM_FLOOR_H_

#include "benchmark/benchmark.h"
#include "kernels/testing/cuda_bench.h"

namespace mimo {

// Flops a second of bare OpenBLAS's sgemm on NumThreads() threads of its own,
// 1024 x 1024 x 1024; the best of ten, measured once a process.
double SgemmFlopsPerSecond();

// Flops a second of cuBLASLt's bfloat16 product of a linear layer, 8192 x 8192
// x 8192; the median of twenty, measured once a process in memory of `gpu`'s.
double CudaMatmulFlopsPerSecond(CudaBench& gpu);

// Adds the columns GFLOP and sgemm% (share of the floor) to a finished
// benchmark; `flops` is an iteration's by the op's header.
void ReportFlops(benchmark::State& state, double flops);

}  // namespace mimo

#endif  // MIMO_KERNELS_GEMM_GEMM_FLOOR_H_
