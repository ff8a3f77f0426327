#include "kernels/norm/norm.cuh"
#include "kernels/norm/rms_norm.h"

namespace mimo::kernels {

void RmsNormForwardCuda(const RmsNormForwardArgs& args, Stream stream) {
  CHECK_EQ(args.sum == nullptr, args.residual == nullptr)
      << "RmsNorm: a sum goes with a residual";
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    LaunchNormForward<false, T>(
        {.x = static_cast<const T*>(args.x),
         .residual = static_cast<const T*>(args.residual),
         .weight = static_cast<const T*>(args.weight),
         .sum = static_cast<T*>(args.sum),
         .y = static_cast<T*>(args.y),
         .rstd = static_cast<float*>(args.rstd)},
        args.tokens, args.hidden, args.eps, stream);
  });
}

void RmsNormBackwardCuda(const RmsNormBackwardArgs& args, Stream stream) {
  CHECK(args.dweight == nullptr || args.tokens == 0 ||
        args.workspace != nullptr)
      << "RmsNorm: dweight needs a workspace";
  int64_t partial_rows = 0;
  float* partial =
      args.dweight == nullptr ? nullptr : static_cast<float*>(args.workspace);
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    partial_rows = LaunchNormBackward<false, T>(
        {.x = static_cast<const T*>(args.x),
         .weight = static_cast<const T*>(args.weight),
         .rstd = static_cast<const float*>(args.rstd),
         .dy = static_cast<const T*>(args.dy),
         .dx = static_cast<T*>(args.dx),
         .accumulate_dx = args.accumulate_dx,
         .dweight_partial = partial},
        args.tokens, args.hidden, stream);
  });
  if (args.dweight != nullptr) {
    SumRows(partial, partial_rows, args.hidden, args.dweight_beta,
            static_cast<float*>(args.dweight), stream);
  }
}

}  // namespace mimo::kernels
