// The ways attention runs on a GPU; attention.cu chooses among them.
//   sm90   our own Hopper kernels (wgmma, TMA): bfloat16, head size 64 or 128
//   cudnn  cuDNN's graph API: bfloat16
//   simple any shape, float32 and bfloat16
#ifndef MIMO_KERNELS_ATTENTION_ATTENTION_CUDA_H_
#define MIMO_KERNELS_ATTENTION_ATTENTION_CUDA_H_

#include "absl/strings/string_view.h"
#include "kernels/attention/attention.h"

namespace mimo::kernels {

// kCudnnUnordered is for comparison: its backward adds with atomics, which is
// faster and differs from run to run.
enum class AttentionWay { kSm90, kCudnn, kCudnnUnordered, kSimple };
inline constexpr AttentionWay kAttentionWays[] = {
    AttentionWay::kSm90, AttentionWay::kCudnn, AttentionWay::kCudnnUnordered,
    AttentionWay::kSimple};
absl::string_view Name(AttentionWay way);

// Whether the way takes these arguments, whatever the pointers (but null ones).
bool Takes(AttentionWay way, const AttentionForwardArgs& args);
bool Takes(AttentionWay way, const AttentionBackwardArgs& args);

// The way that AttentionForward and AttentionBackward go.
AttentionWay WayOf(const AttentionForwardArgs& args);
AttentionWay WayOf(const AttentionBackwardArgs& args);

// AttentionForward and AttentionBackward by a way that takes the arguments; but
// only sm90's backward minds cos and sin.
void AttentionForwardBy(AttentionWay way, const AttentionForwardArgs& args,
                        Stream stream);
void AttentionBackwardBy(AttentionWay way, const AttentionBackwardArgs& args,
                         Stream stream);
int64_t AttentionBackwardWorkspaceBytesBy(AttentionWay way,
                                          const AttentionShape& shape);

// The ways themselves.

bool AttentionForwardSm90Takes(const AttentionForwardArgs& args);
bool AttentionBackwardSm90Takes(const AttentionBackwardArgs& args);
bool AttentionForwardCudnnTakes(const AttentionForwardArgs& args);
bool AttentionBackwardCudnnTakes(const AttentionBackwardArgs& args,
                                 bool unordered);

void AttentionForwardSm90(const AttentionForwardArgs& args, Stream stream);
void AttentionBackwardSm90(const AttentionBackwardArgs& args, Stream stream);
void AttentionForwardCudnn(const AttentionForwardArgs& args, Stream stream);
void AttentionBackwardCudnn(const AttentionBackwardArgs& args, Stream stream,
                            bool unordered);
void AttentionForwardSimple(const AttentionForwardArgs& args, Stream stream);
void AttentionBackwardSimple(const AttentionBackwardArgs& args, Stream stream);

int64_t AttentionBackwardSm90WorkspaceBytes(const AttentionShape& shape);
int64_t AttentionBackwardCudnnWorkspaceBytes(const AttentionShape& shape,
                                             bool unordered);
int64_t AttentionBackwardSimpleWorkspaceBytes(const AttentionShape& shape);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ATTENTION_ATTENTION_CUDA_H_
