#include "kernels/base/cuda.cuh"
#include "kernels/loss/loss_mean.h"

namespace mimo::kernels {
namespace {

__global__ void LossScaleKernel(const double* labelled, double* scale) {
  *scale = *labelled > 0 ? 1 / *labelled : 0;
}

__global__ void AddLossKernel(const double* loss, double* sum) {
  *sum += *loss;
}

}  // namespace

void LossScaleCuda(const LossScaleArgs& args, Stream stream) {
  LossScaleKernel<<<1, 1, 0, RawStream(stream)>>>(args.labelled, args.scale);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

void AddLossCuda(const AddLossArgs& args, Stream stream) {
  AddLossKernel<<<1, 1, 0, RawStream(stream)>>>(args.loss, args.sum);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
