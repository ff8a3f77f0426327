#include <algorithm>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cuda.h"

namespace mimo::kernels {
namespace {

// The way for a class of shapes.
AttentionWay Preferred(const AttentionShape& s, DType dtype) {
  if (dtype != DType::kBFloat16 || s.head_dim > 128) {
    return AttentionWay::kSimple;
  }
  return AttentionWay::kCudnn;
}

}  // namespace

absl::string_view Name(AttentionWay way) {
  switch (way) {
    case AttentionWay::kCudnn:
      return "cudnn";
    case AttentionWay::kCudnnUnordered:
      return "cudnn_unordered";
    case AttentionWay::kSimple:
      return "simple";
  }
  LOG(FATAL) << "no such way";
}

bool Takes(AttentionWay way, const AttentionForwardArgs& args) {
  switch (way) {
    case AttentionWay::kCudnn:
    case AttentionWay::kCudnnUnordered:
      return AttentionForwardCudnnTakes(args);
    case AttentionWay::kSimple:
      return true;
  }
  LOG(FATAL) << "no such way";
}

bool Takes(AttentionWay way, const AttentionBackwardArgs& args) {
  switch (way) {
    case AttentionWay::kCudnn:
    case AttentionWay::kCudnnUnordered:
      return AttentionBackwardCudnnTakes(args,
                                         way == AttentionWay::kCudnnUnordered);
    case AttentionWay::kSimple:
      return true;
  }
  LOG(FATAL) << "no such way";
}

void AttentionForwardBy(AttentionWay way, const AttentionForwardArgs& args,
                        Stream stream) {
  switch (way) {
    case AttentionWay::kCudnn:
    case AttentionWay::kCudnnUnordered:
      return AttentionForwardCudnn(args, stream);
    case AttentionWay::kSimple:
      return AttentionForwardSimple(args, stream);
  }
}

void AttentionBackwardBy(AttentionWay way, const AttentionBackwardArgs& args,
                         Stream stream) {
  switch (way) {
    case AttentionWay::kCudnn:
    case AttentionWay::kCudnnUnordered:
      return AttentionBackwardCudnn(args, stream,
                                    way == AttentionWay::kCudnnUnordered);
    case AttentionWay::kSimple:
      return AttentionBackwardSimple(args, stream);
  }
}

int64_t AttentionBackwardWorkspaceBytesBy(AttentionWay way,
                                          const AttentionShape& shape) {
  switch (way) {
    case AttentionWay::kCudnn:
    case AttentionWay::kCudnnUnordered:
      return AttentionBackwardCudnnWorkspaceBytes(
          shape, way == AttentionWay::kCudnnUnordered);
    case AttentionWay::kSimple:
      return AttentionBackwardSimpleWorkspaceBytes(shape);
  }
  LOG(FATAL) << "no such way";
}

void AttentionForwardCuda(const AttentionForwardArgs& args, Stream stream) {
  const AttentionWay way = Preferred(args.shape, args.dtype);
  AttentionForwardBy(Takes(way, args) ? way : AttentionWay::kSimple, args,
                     stream);
}

void AttentionBackwardCuda(const AttentionBackwardArgs& args, Stream stream) {
  const AttentionWay way = Preferred(args.shape, args.dtype);
  AttentionBackwardBy(Takes(way, args) ? way : AttentionWay::kSimple, args,
                      stream);
}

int64_t AttentionBackwardWorkspaceBytesCuda(const AttentionShape& shape,
                                            DType dtype) {
  return std::max(
      AttentionBackwardWorkspaceBytesBy(Preferred(shape, dtype), shape),
      AttentionBackwardWorkspaceBytesBy(AttentionWay::kSimple, shape));
}

}  // namespace mimo::kernels
