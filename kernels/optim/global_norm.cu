#include <math_constants.h>

#include <cmath>

#include "absl/log/check.h"
#include "kernels/base/cuda.cuh"
#include "kernels/optim/global_norm.h"
#include "kernels/reduce/sum_doubles.cuh"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 256;

// A block of the list a block: partials[b] = sum grad^2, of what is not counted
// 0 times that.
__global__ void SquaresKernel(const AdamWTensor* tensors,
                              const TensorBlock* blocks, double* partials) {
  const TensorBlock block = blocks[blockIdx.x];
  const AdamWTensor& tensor = tensors[block.tensor];
  const float* grad = static_cast<const float*>(tensor.grad) + block.begin;
  const int size = min(kBlockElements, tensor.size - block.begin);
  double squares[4] = {};
#pragma unroll 4
  for (int i = threadIdx.x * 4; i + 3 < size; i += kThreads * 4) {
    float g[4];
    Load<4>(grad + i, g);
#pragma unroll
    for (int k = 0; k < 4; ++k) squares[k] += double{g[k]} * g[k];
  }
  if (threadIdx.x < size % 4) {
    const double g = grad[size / 4 * 4 + threadIdx.x];
    squares[0] += g * g;
  }
  const double sum = SumOfBlock<kThreads>((squares[0] + squares[1]) +
                                          (squares[2] + squares[3]));
  if (threadIdx.x == 0) partials[blockIdx.x] = tensor.counted ? sum : 0 * sum;
}

__global__ void ClipFactorKernel(AdamWControl* control, const double* loss,
                                 double max_norm) {
  const double norm =
      loss == nullptr || isfinite(*loss) ? sqrt(control->squares) : CUDART_NAN;
  control->norm = norm;
  control->grad_scale = max_norm == 0 ? 1 : fmin(1.0, max_norm / (norm + 1e-6));
}

}  // namespace

void SumSquaresCuda(const SumSquaresArgs& args, Stream stream) {
  const TensorList& list = *args.tensors;
  if (list.num_blocks() > 0) {
    SquaresKernel<<<list.num_blocks(), kThreads, 0, RawStream(stream)>>>(
        list.tensors(), list.blocks(), list.partials());
    MIMO_CUDA_CHECK(cudaGetLastError());
  }
  SumDoubles(
      list.partials(), list.num_blocks(),
      [control = args.control] __device__(double squares) {
        control->squares = squares;
      },
      stream);
}

void ClipFactorCuda(const ClipFactorArgs& args, Stream stream) {
  CHECK_GE(args.max_norm, 0);
  ClipFactorKernel<<<1, 1, 0, RawStream(stream)>>>(args.control, args.loss,
                                                   args.max_norm);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
