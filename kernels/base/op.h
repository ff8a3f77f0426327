// MIMO_OP: an op's entry point, which runs it where its stream is.
//
// MIMO_OP(RmsNormForward, RmsNormForwardArgs) in rms_norm.h declares
//   void RmsNormForward(const RmsNormForwardArgs&, Stream);
//   void RmsNormForwardCpu(const RmsNormForwardArgs&);
//   void RmsNormForwardCuda(const RmsNormForwardArgs&, Stream);
// The first is for callers and is defined here; the others are the op's, in
// rms_norm_cpu.cc and rms_norm.cu.
#ifndef MIMO_KERNELS_BASE_OP_H_
#define MIMO_KERNELS_BASE_OP_H_

#include "kernels/base/on_cuda.h"
#include "kernels/base/stream.h"

#define MIMO_OP(Name, Args)                                    \
  void Name##Cpu(const Args& args);                            \
  void Name##Cuda(const Args& args, Stream stream);            \
  inline void Name(const Args& args, Stream stream) {          \
    if (stream.device == Device::kCpu) return Name##Cpu(args); \
    MIMO_ON_CUDA(Name##Cuda(args, stream));                    \
  }                                                            \
  static_assert(true, "wants a semicolon")

#endif  // MIMO_KERNELS_BASE_OP_H_
