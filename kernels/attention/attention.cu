#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/turn_back.h"
#include "kernels/base/cuda.cuh"

namespace mimo::kernels {
namespace {

// The way for a class of shapes. Measured on an H100 with attention_cuda_bench,
// TFLOP/s of sm90, cudnn (its sums in a fixed order) and simple, forward and
// backward, head size 128 causal unless said otherwise:
//   B  4 N 32       S  2048         559 523 23    414 360 11
//   B  2 N 32       S  4096         638 585       478 406
//   B  2 N 32 G 8   S  4096         639 587       461 406
//   B  1 N 32       S 16384         698 656       523 472
//   B  8 N 32       S   704         307 310       237 231
//   B 32 N 16       S   577 D 64    296 278 17    273 164 13    full
//   B  8 N 16       S   729 D 72        243 12        170  5    full
// Where sm90 and cudnn are close it is sm90: cuDNN compiles for a second for
// every shape, and its backward keeps dz. cudnn_unordered is never chosen, as
// its gradients differ from run to run; it is slower than sm90 but for the
// backward of S 16384, where it takes 0.97 of sm90's time, and cudnn 1.15.
AttentionWay Preferred(const AttentionShape& s, DType dtype) {
  if (dtype != DType::kBFloat16) return AttentionWay::kSimple;
  if (s.head_dim == 64 || s.head_dim == 128) return AttentionWay::kSm90;
  return AttentionWay::kCudnn;
}

// cuDNN leaves NaN in the rows of a sample that has no key.
__global__ void ClearKeylessKernel(AttentionForwardArgs args) {
  const int64_t b = blockIdx.x;
  if (args.key_lengths[b] > 0) return;
  const AttentionShape& s = args.shape;
  const int64_t rows = s.heads * s.seq_q, values = rows * s.head_dim;
  auto* const out = static_cast<__nv_bfloat16*>(args.out) + b * values;
  float* const lse = static_cast<float*>(args.lse) + b * rows;
  for (int64_t i = threadIdx.x; i < values; i += blockDim.x) out[i] = 0;
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) lse[i] = -INFINITY;
}

void ForwardCudnn(const AttentionForwardArgs& args, Stream stream) {
  AttentionForwardCudnn(args, stream);
  if (args.key_lengths == nullptr) return;
  ClearKeylessKernel<<<args.shape.batch, 256, 0, RawStream(stream)>>>(args);
  MIMO_CUDA_CHECK(cudaGetLastError());
}

template <typename Args>
AttentionWay PreferredOrSimple(const Args& args) {
  const AttentionWay way = Preferred(args.shape, args.dtype);
  return Takes(way, args) ? way : AttentionWay::kSimple;
}

template <typename Args>
bool Always(const Args&) {
  return true;
}

struct Functions {
  absl::string_view name;
  bool (*forward_takes)(const AttentionForwardArgs&);
  bool (*backward_takes)(const AttentionBackwardArgs&);
  void (*forward)(const AttentionForwardArgs&, Stream);
  void (*backward)(const AttentionBackwardArgs&, Stream);
  int64_t (*backward_workspace_bytes)(const AttentionShape&);
};

// By AttentionWay.
constexpr Functions kFunctions[] = {
    {"sm90", AttentionForwardSm90Takes, AttentionBackwardSm90Takes,
     AttentionForwardSm90, AttentionBackwardSm90,
     AttentionBackwardSm90WorkspaceBytes},
    {"cudnn", AttentionForwardCudnnTakes,
     [](const AttentionBackwardArgs& args) {
       return AttentionBackwardCudnnTakes(args, false);
     },
     ForwardCudnn,
     [](const AttentionBackwardArgs& args, Stream stream) {
       AttentionBackwardCudnn(args, stream, false);
     },
     [](const AttentionShape& shape) {
       return AttentionBackwardCudnnWorkspaceBytes(shape, false);
     }},
    {"cudnn_unordered", AttentionForwardCudnnTakes,
     [](const AttentionBackwardArgs& args) {
       return AttentionBackwardCudnnTakes(args, true);
     },
     ForwardCudnn,
     [](const AttentionBackwardArgs& args, Stream stream) {
       AttentionBackwardCudnn(args, stream, true);
     },
     [](const AttentionShape& shape) {
       return AttentionBackwardCudnnWorkspaceBytes(shape, true);
     }},
    {"simple", Always<AttentionForwardArgs>, Always<AttentionBackwardArgs>,
     AttentionForwardSimple, AttentionBackwardSimple,
     AttentionBackwardSimpleWorkspaceBytes},
};
const Functions& Of(AttentionWay way) {
  return kFunctions[static_cast<int>(way)];
}

}  // namespace

absl::string_view Name(AttentionWay way) { return Of(way).name; }

bool Takes(AttentionWay way, const AttentionForwardArgs& args) {
  return Of(way).forward_takes(args);
}
bool Takes(AttentionWay way, const AttentionBackwardArgs& args) {
  return Of(way).backward_takes(args);
}

AttentionWay WayOf(const AttentionForwardArgs& args) {
  return PreferredOrSimple(args);
}
AttentionWay WayOf(const AttentionBackwardArgs& args) {
  return PreferredOrSimple(args);
}

void AttentionForwardBy(AttentionWay way, const AttentionForwardArgs& args,
                        Stream stream) {
  Of(way).forward(args, stream);
}
void AttentionBackwardBy(AttentionWay way, const AttentionBackwardArgs& args,
                         Stream stream) {
  Of(way).backward(args, stream);
}
int64_t AttentionBackwardWorkspaceBytesBy(AttentionWay way,
                                          const AttentionShape& shape) {
  return Of(way).backward_workspace_bytes(shape);
}

void AttentionForwardCuda(const AttentionForwardArgs& args, Stream stream) {
  AttentionForwardBy(WayOf(args), args, stream);
}

void AttentionBackwardCuda(const AttentionBackwardArgs& args, Stream stream) {
  const AttentionWay way = WayOf(args);
  AttentionBackwardBy(way, args, stream);
  // Ours has done it.
  if (way != AttentionWay::kSm90) TurnBack(args, stream);
}

int64_t AttentionBackwardWorkspaceBytesCuda(const AttentionShape& shape,
                                            DType dtype) {
  return std::max(
      AttentionBackwardWorkspaceBytesBy(Preferred(shape, dtype), shape),
      AttentionBackwardWorkspaceBytesBy(AttentionWay::kSimple, shape));
}

}  // namespace mimo::kernels
