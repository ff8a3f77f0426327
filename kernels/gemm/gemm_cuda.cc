#include <cuda_runtime.h>

#include "absl/log/check.h"
#include "kernels/base/cuda_check.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_checked.h"
#include "kernels/gemm/gemm_plans.h"

namespace mimo::kernels {
namespace {

// op(a) op(b) + beta * c, with what of the epilogue `args` asks for; false if
// cuBLASLt cannot.
bool Product(const GemmArgs& args, Stream stream) {
  if (args.k > 0)
    return GemmPlans::Get().Run(args, static_cast<cudaStream_t>(stream.raw));
  if (HasEpilogue(args)) return false;
  if (args.beta == 0) {
    const int64_t size = SizeOf(*args.c_dtype);
    MIMO_CUDA_CHECK(cudaMemset2DAsync(args.c, args.ldc * size, 0, args.n * size,
                                      args.m,
                                      static_cast<cudaStream_t>(stream.raw)));
  }
  return true;
}

// Beside 8-bit operands cuBLASLt reads any bias as bfloat16.
bool TakesBias(const GemmArgs& args) {
  return !IsFloat8(args.dtype) || *args.c_dtype == DType::kBFloat16;
}

// cuBLASLt's GELU is the tanh form, of an accuracy that shows in float32.
bool HasCublasLt(const GemmArgs& args) {
  if (args.bias != nullptr && !TakesBias(args)) return false;
  return args.activation == Activation::kIdentity ||
         (args.activation == Activation::kGeluTanh &&
          args.dtype == DType::kBFloat16);
}

}  // namespace

void GemmCuda(const GemmArgs& unchecked, Stream stream) {
  const GemmArgs args = Checked(unchecked);
  CHECK(*args.c_dtype == DType::kFloat32 || *args.c_dtype == DType::kBFloat16)
      << "a GPU computes in float32 or bfloat16, not " << Name(*args.c_dtype);
  if (args.m == 0 || args.n == 0) return;
  if (HasCublasLt(args) && Product(args, stream)) return;
  // The bias with the product if cuBLASLt can, the activation after it.
  GemmArgs plain = args;
  plain.activation = Activation::kIdentity;
  plain.z = nullptr;
  if (args.z != nullptr) plain.c = args.z;
  const bool biased =
      args.bias != nullptr && TakesBias(args) && Product(plain, stream);
  if (!biased) {
    plain.bias = nullptr;
    CHECK(Product(plain, stream))
        << "cuBLASLt has no algorithm for " << args.m << " x " << args.n
        << " x " << args.k << " of " << Name(args.dtype);
  }
  BiasActivationForward({.x = plain.c,
                         .bias = biased ? nullptr : args.bias,
                         .y = args.c,
                         .z = biased ? nullptr : args.z,
                         .activation = args.activation,
                         .tokens = args.m,
                         .features = args.n,
                         .dtype = *args.c_dtype},
                        stream);
}

void AutotuneGemmCuda(const std::string& path) {
  GemmPlans::Get().Autotune(path);
}

}  // namespace mimo::kernels
