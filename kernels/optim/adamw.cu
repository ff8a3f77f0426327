#include <cmath>

#include "kernels/base/cuda.cuh"
#include "kernels/optim/adamw.h"

namespace mimo::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 4;  // elements of a thread: 16 bytes of float
// Thread blocks that share out a block of the list.
constexpr int kPieces = kBlockElements / (kThreads * kWidth);

// The step's outcome and constants, before any block of the update.
__global__ void BeginKernel(AdamWControl* control, double beta1, double beta2) {
  if (!isfinite(control->norm)) {
    ++control->skipped;
    return;
  }
  const double step = ++control->steps;
  control->rate = control->lr / (1 - pow(beta1, step));
  control->root2 = 1 / sqrt(1 - pow(beta2, step));
}

// body.operator()<n>(i): n elements of the block's tensor from i on, of this
// thread.
template <typename F>
__device__ void ForElements(const TensorBlock& block, int64_t size, F&& body) {
  int64_t i =
      block.begin + (blockIdx.x % kPieces * kThreads + threadIdx.x) * kWidth;
  if (i + kWidth <= size) return body.template operator()<kWidth>(i);
  for (; i < size; ++i) body.template operator()<1>(i);
}

// kCount floats rounded to bfloat16, in one access.
template <int kCount>
__device__ void StoreRounded(__nv_bfloat16* to, const float (&from)[kCount]) {
  if constexpr (kCount == 1) {
    *to = __float2bfloat16_rn(from[0]);
  } else {
    const __nv_bfloat162 halves[2] = {__floats2bfloat162_rn(from[0], from[1]),
                                      __floats2bfloat162_rn(from[2], from[3])};
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(halves);
  }
}

// T: the parameter's type.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    UpdateKernel(const AdamWTensor* tensors, const TensorBlock* blocks,
                 const AdamWControl* control, float beta1, float rest1,
                 float beta2, float rest2, float eps) {
  if (!isfinite(control->norm)) return;
  const TensorBlock block = blocks[blockIdx.x / kPieces];
  const AdamWTensor& tensor = tensors[block.tensor];
  const float keep = 1 - control->lr * tensor.lr_scale * tensor.weight_decay;
  const float rate = control->rate * tensor.lr_scale;
  const float root2 = control->root2;
  const float scale = control->grad_scale;
  float* master =
      static_cast<float*>(sizeof(T) == 4 ? tensor.param : tensor.master);
  const float* grad = static_cast<const float*>(tensor.grad);
  float* exp_avg = static_cast<float*>(tensor.exp_avg);
  float* exp_avg_sq = static_cast<float*>(tensor.exp_avg_sq);
  ForElements(block, tensor.size, [&]<int kCount>(int64_t i) {
    float p[kCount], g[kCount], m[kCount], v[kCount];
    Load<kCount>(master + i, p);
    Load<kCount>(grad + i, g);
    Load<kCount>(exp_avg + i, m);
    Load<kCount>(exp_avg_sq + i, v);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      g[k] *= scale;
      m[k] = beta1 * m[k] + rest1 * g[k];
      v[k] = beta2 * v[k] + rest2 * g[k] * g[k];
      p[k] = keep * p[k] - rate * m[k] / (sqrtf(v[k]) * root2 + eps);
    }
    Store<kCount>(master + i, p);
    Store<kCount>(exp_avg + i, m);
    Store<kCount>(exp_avg_sq + i, v);
    if constexpr (sizeof(T) == 2)
      StoreRounded<kCount>(static_cast<T*>(tensor.param) + i, p);
  });
}

__global__ void SetMastersKernel(const AdamWTensor* tensors,
                                 const TensorBlock* blocks) {
  const TensorBlock block = blocks[blockIdx.x / kPieces];
  const AdamWTensor& tensor = tensors[block.tensor];
  ForElements(block, tensor.size, [&]<int kCount>(int64_t i) {
    for (int k = 0; k < kCount; ++k) {
      static_cast<float*>(tensor.master)[i + k] =
          ToFloat(static_cast<const __nv_bfloat16*>(tensor.param)[i + k]);
    }
  });
}

}  // namespace

void AdamWCuda(const AdamWArgs& args, Stream stream) {
  const TensorList& list = *args.tensors;
  BeginKernel<<<1, 1, 0, RawStream(stream)>>>(args.control, args.beta1,
                                              args.beta2);
  MIMO_CUDA_CHECK(cudaGetLastError());
  if (list.num_blocks() == 0) return;
  DispatchCudaFloat(list.dtype(), [&]<typename T>() {
    UpdateKernel<T>
        <<<list.num_blocks() * kPieces, kThreads, 0, RawStream(stream)>>>(
            list.tensors(), list.blocks(), args.control, args.beta1,
            1 - args.beta1, args.beta2, 1 - args.beta2, args.eps);
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

void SetMastersCuda(const SetMastersArgs& args, Stream stream) {
  const TensorList& list = *args.tensors;
  if (list.dtype() != DType::kBFloat16 || list.num_blocks() == 0) return;
  SetMastersKernel<<<list.num_blocks() * kPieces, kThreads, 0,
                     RawStream(stream)>>>(list.tensors(), list.blocks());
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace mimo::kernels
