// MIMO_ON_CUDA(call): returns the call's value; fatal in a binary that was
// built without CUDA, where the callee does not exist.
#ifndef MIMO_KERNELS_BASE_ON_CUDA_H_
#define MIMO_KERNELS_BASE_ON_CUDA_H_

#ifdef MIMO_CUDA
#define MIMO_ON_CUDA(call) return call
#else
#include "absl/log/log.h"
#define MIMO_ON_CUDA(call) LOG(FATAL) << #call ": built without CUDA"
#endif

#endif  // MIMO_KERNELS_BASE_ON_CUDA_H_
