// Gemm: the matrix product of every linear layer.
//   c = op(a) op(b) + beta * c        op(x) = x or x^T;  row-major
//   op(a) [M, K], op(b) [K, N], c [M, N]
// A linear layer y = x w^T of x [T, H] and w [F, H] is three of them:
//   y  [T, F] = x w^T      transpose_b
//   dx [T, H] = dy w
//   dw [F, H] = dy^T x + beta dw   transpose_a, straight into main_grad
// CPU: OpenBLAS on one thread a block, the blocks shared out by ParallelFor.
// Flops (the floor): 2 M N K. K = 0 gives beta * c; beta = 0 never reads c.
#ifndef MIMO_KERNELS_GEMM_GEMM_H_
#define MIMO_KERNELS_GEMM_GEMM_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct GemmArgs {
  const void* a;  // [M, K] dtype, or [K, M] with transpose_a
  const void* b;  // [K, N] dtype, or [N, K] with transpose_b
  void* c;        // [M, N] dtype
  int64_t m, n, k;
  bool transpose_a = false;
  bool transpose_b = false;
  // Elements from one row of the buffer to the next; 0: rows are adjacent.
  int64_t lda = 0, ldb = 0, ldc = 0;
  float beta = 0;  // 0 or 1
  DType dtype;
};
void Gemm(const GemmArgs& args, Stream stream);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_GEMM_GEMM_H_
