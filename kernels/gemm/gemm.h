// Gemm: the matrix product of every linear layer.
//   c = op(a) op(b) + beta * c        op(x) = x or x^T;  row-major
//   op(a) [M, K], op(b) [K, N], c [M, N]
// or, with an epilogue (bias, activation), beta 0 and adjacent rows of c,
//   c = act(z),  z = op(a) op(b) + bias
// A linear layer y = act(x w^T + bias) of x [T, H] and w [F, H] is three:
//   y  [T, F] = act(x w^T + bias)  transpose_b
//   dx [T, H] = dz w
//   dw [F, H] = dz^T x + beta dw   transpose_a, straight into main_grad
// Operands in 8-bit floats (kernels/quantise) come with the scales that make
// them numbers again, and lie as tensor cores read them, K adjacent:
//   c = a_scale b_scale (a b^T) + beta * c
// The sums are float32 (cuBLASLt's fast accumulation is left off), or float64
// where c is. Not both operands are float8_e5m2.
// Flops (the floor): 2 M N K. K = 0 gives beta * c; beta = 0 never reads c.
// CPU: OpenBLAS on one thread a block, the blocks shared out by ParallelFor.
// CUDA: cuBLASLt; true float32, or bfloat16 with float32 sums; deterministic.
// A bfloat16 product may be rounded before beta * c or the bias is added. Its
// GELU epilogue is the tanh form, of the hardware's tanh, and takes bias and z
// along; every other activation is a kernel after the product.
#ifndef MIMO_KERNELS_GEMM_GEMM_H_
#define MIMO_KERNELS_GEMM_GEMM_H_

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/activation/bias_activation.h"
#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct GemmArgs {
  const void* a;  // [M, K] dtype, or [K, M] with transpose_a
  const void* b;  // [K, N] dtype, or [N, K] with transpose_b
  void* c;        // [M, N] c_dtype
  int64_t m, n, k;
  bool transpose_a = false;
  bool transpose_b = false;
  // Elements from one row of the buffer to the next; 0: rows are adjacent.
  int64_t lda = 0, ldb = 0, ldc = 0;
  float beta = 0;  // 0 or 1
  DType dtype;
  // dtype if not set; or its accumulator. Of 8-bit operands, any that trains.
  std::optional<DType> c_dtype = {};
  const void* bias = nullptr;  // [N] c_dtype; null: zero
  Activation activation = Activation::kIdentity;
  void* z = nullptr;  // [M, N] c_dtype, kept for the backward; null: not kept
  // Of 8-bit operands, with transpose_b, adjacent rows, N and K multiples of
  // 16:
  std::optional<DType> b_dtype = {};  // dtype if not set
  const float* a_scale = nullptr;     // [1]
  const float* b_scale = nullptr;     // [1]
};
MIMO_OP(Gemm, GemmArgs);

// From now on the first product of each kind on a GPU times cuBLASLt's best
// candidates, unless its stream is being captured, and the winner is kept in
// the text file `path` for later runs on the same GPU and library; a file of
// others is ignored with a warning. Algorithms differ in the order of their
// sums: runs are bitwise the same if they share the file. An empty path ends
// this. The CPU has nothing to choose.
void AutotuneGemmCuda(const std::string& path);
inline void AutotuneGemm(const std::string& path, Device device) {
  if (device == Device::kCpu) return;
  MIMO_ON_CUDA(AutotuneGemmCuda(path));
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_GEMM_GEMM_H_
