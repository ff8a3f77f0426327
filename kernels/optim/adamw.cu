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

// kCount bfloat16 or remainders, in one access.
template <int kCount>
struct alignas(2 * kCount) Halves {
  uint16_t bits[kCount];
};
template <int kCount>
__device__ Halves<kCount>& HalvesAt(void* array, int64_t i) {
  return *reinterpret_cast<Halves<kCount>*>(static_cast<uint16_t*>(array) + i);
}

// Elements from i on of the master, T being the parameter's type.
template <typename T, int kCount>
__device__ void LoadMaster(const AdamWTensor& tensor, int64_t i,
                           float (&p)[kCount]) {
  if constexpr (sizeof(T) == 4) {
    Load<kCount>(static_cast<const float*>(tensor.param) + i, p);
  } else {
    const Halves<kCount> rounded = HalvesAt<kCount>(tensor.param, i);
    const Halves<kCount> remainder = HalvesAt<kCount>(tensor.remainder, i);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      p[k] = __uint_as_float((uint32_t{rounded.bits[k]} << 16) +
                             static_cast<int16_t>(remainder.bits[k]));
    }
  }
}
template <typename T, int kCount>
__device__ void StoreMaster(const AdamWTensor& tensor, int64_t i,
                            const float (&p)[kCount]) {
  if constexpr (sizeof(T) == 4) {
    Store<kCount>(static_cast<float*>(tensor.param) + i, p);
  } else {
    Halves<kCount> rounded, remainder;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const uint32_t bits = __float_as_uint(p[k]);
      rounded.bits[k] = p[k] == p[k] ? (bits + 0x8000) >> 16 : 0x7fff;  // NaN
      remainder.bits[k] = bits;
    }
    HalvesAt<kCount>(tensor.param, i) = rounded;
    HalvesAt<kCount>(tensor.remainder, i) = remainder;
  }
}

// T: the parameter's type, M: m's.
template <typename T, typename M>
__global__ void __launch_bounds__(kThreads)
    UpdateKernel(const AdamWTensor* tensors, const TensorBlock* blocks,
                 const AdamWControl* control, float beta1, float rest1,
                 float beta2, float rest2, float eps) {
  if (!isfinite(control->norm)) return;
  const TensorBlock block = blocks[blockIdx.x / kPieces];
  const AdamWTensor tensor = tensors[block.tensor];
  const float keep = 1 - control->lr * tensor.lr_scale * tensor.weight_decay;
  const float rate = control->rate * tensor.lr_scale;
  const float root2 = control->root2;
  const float scale = control->grad_scale;
  const float* grad = static_cast<const float*>(tensor.grad);
  M* exp_avg = static_cast<M*>(tensor.exp_avg);
  float* exp_avg_sq = static_cast<float*>(tensor.exp_avg_sq);
  ForElements(block, tensor.size, [&]<int kCount>(int64_t i) {
    float p[kCount], g[kCount], m[kCount], v[kCount];
    LoadMaster<T>(tensor, i, p);
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
    StoreMaster<T>(tensor, i, p);
    Store<kCount>(exp_avg + i, m);
    Store<kCount>(exp_avg_sq + i, v);
  });
}

// grad = master, or master = grad.
template <bool kJoin>
__global__ void MastersKernel(const AdamWTensor* tensors,
                              const TensorBlock* blocks) {
  const TensorBlock block = blocks[blockIdx.x / kPieces];
  const AdamWTensor tensor = tensors[block.tensor];
  float* grad = static_cast<float*>(tensor.grad);
  ForElements(block, tensor.size, [&]<int kCount>(int64_t i) {
    float p[kCount];
    if constexpr (kJoin) {
      LoadMaster<__nv_bfloat16>(tensor, i, p);
      Store<kCount>(grad + i, p);
    } else {
      Load<kCount>(grad + i, p);
      StoreMaster<__nv_bfloat16>(tensor, i, p);
    }
  });
}

template <bool kJoin>
void RunMasters(const TensorList& list, Stream stream) {
  if (list.dtype() != DType::kBFloat16 || list.num_blocks() == 0) return;
  MastersKernel<kJoin>
      <<<list.num_blocks() * kPieces, kThreads, 0, RawStream(stream)>>>(
          list.tensors(), list.blocks());
  MIMO_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void AdamWCuda(const AdamWArgs& args, Stream stream) {
  const TensorList& list = *args.tensors;
  BeginKernel<<<1, 1, 0, RawStream(stream)>>>(args.control, args.beta1,
                                              args.beta2);
  MIMO_CUDA_CHECK(cudaGetLastError());
  if (list.num_blocks() == 0) return;
  DispatchCudaFloat(list.dtype(), [&]<typename T>() {
    DispatchCudaFloat(args.exp_avg_dtype, [&]<typename M>() {
      UpdateKernel<T, M>
          <<<list.num_blocks() * kPieces, kThreads, 0, RawStream(stream)>>>(
              list.tensors(), list.blocks(), args.control, args.beta1,
              1 - args.beta1, args.beta2, 1 - args.beta2, args.eps);
    });
  });
  MIMO_CUDA_CHECK(cudaGetLastError());
}

void JoinMastersCuda(const MastersArgs& args, Stream stream) {
  RunMasters<true>(*args.tensors, stream);
}

void SplitMastersCuda(const MastersArgs& args, Stream stream) {
  RunMasters<false>(*args.tensors, stream);
}

}  // namespace mimo::kernels
