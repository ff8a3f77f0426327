#include "kernels/norm/layer_norm.h"
#include "kernels/norm/norm.cuh"

namespace mimo::kernels {

void LayerNormForwardCuda(const LayerNormForwardArgs& args, Stream stream) {
  CHECK_EQ(args.sum == nullptr, args.residual == nullptr)
      << "LayerNorm: a sum goes with a residual";
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    LaunchNormForward<true, T>(
        {.x = static_cast<const T*>(args.x),
         .residual = static_cast<const T*>(args.residual),
         .weight = static_cast<const T*>(args.weight),
         .bias = static_cast<const T*>(args.bias),
         .sum = static_cast<T*>(args.sum),
         .y = static_cast<T*>(args.y),
         .mean = static_cast<float*>(args.mean),
         .rstd = static_cast<float*>(args.rstd)},
        args.tokens, args.hidden, args.eps, stream);
  });
}

void LayerNormBackwardCuda(const LayerNormBackwardArgs& args, Stream stream) {
  CHECK((args.dweight == nullptr && args.dbias == nullptr) ||
        args.tokens == 0 || args.workspace != nullptr)
      << "LayerNorm: dweight and dbias need a workspace";
  int64_t partial_rows = 0;
  float* workspace = static_cast<float*>(args.workspace);
  float* dweight = args.dweight == nullptr ? nullptr : workspace;
  float* dbias = args.dbias == nullptr
                     ? nullptr
                     : workspace + kCudaPartialRows * args.hidden;
  DispatchCudaFloat(args.dtype, [&]<typename T>() {
    partial_rows = LaunchNormBackward<true, T>(
        {.x = static_cast<const T*>(args.x),
         .weight = static_cast<const T*>(args.weight),
         .mean = static_cast<const float*>(args.mean),
         .rstd = static_cast<const float*>(args.rstd),
         .dy = static_cast<const T*>(args.dy),
         .dx = static_cast<T*>(args.dx),
         .accumulate_dx = args.accumulate_dx,
         .dweight_partial = dweight,
         .dbias_partial = dbias},
        args.tokens, args.hidden, stream);
  });
  if (dweight != nullptr) {
    SumRows(dweight, partial_rows, args.hidden, args.dweight_beta,
            static_cast<float*>(args.dweight), stream);
  }
  if (dbias != nullptr) {
    SumRows(dbias, partial_rows, args.hidden, args.dbias_beta,
            static_cast<float*>(args.dbias), stream);
  }
}

}  // namespace mimo::kernels
