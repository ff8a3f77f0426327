#include <cmath>
#include <concepts>

#include "absl/log/check.h"
#include "kernels/base/bfloat16.h"
#include "kernels/optim/adamw.h"
#include "kernels/optim/blocks.h"

namespace mimo::kernels {
namespace {

// m in memory: a T or a BFloat16.
template <typename T, typename M>
T FromMoment(M m) {
  if constexpr (std::same_as<M, BFloat16>)
    return static_cast<float>(m);
  else
    return m;
}

template <typename T, typename M>
void Update(const AdamWArgs& args) {
  const AdamWControl& control = *args.control;
  const T beta1 = static_cast<T>(args.beta1);
  const T beta2 = static_cast<T>(args.beta2);
  const T rest1 = static_cast<T>(1 - args.beta1);
  const T rest2 = static_cast<T>(1 - args.beta2);
  const T root2 = static_cast<T>(control.root2);
  const T eps = static_cast<T>(args.eps);
  const T scale = static_cast<T>(control.grad_scale);
  ForBlocks(*args.tensors, [&](const AdamWTensor& tensor, int64_t,
                               int64_t begin, int64_t end) {
    const double lr = control.lr * tensor.lr_scale;
    const T keep = static_cast<T>(1 - lr * tensor.weight_decay);
    const T rate = static_cast<T>(control.rate * tensor.lr_scale);
    T* param = static_cast<T*>(tensor.param);
    const T* grad = static_cast<const T*>(tensor.grad);
    M* exp_avg = static_cast<M*>(tensor.exp_avg);
    T* exp_avg_sq = static_cast<T*>(tensor.exp_avg_sq);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const T g = grad[i] * scale;
      const T m = beta1 * FromMoment<T>(exp_avg[i]) + rest1 * g;
      const T v = beta2 * exp_avg_sq[i] + rest2 * g * g;
      exp_avg[i] = M(m);
      exp_avg_sq[i] = v;
      param[i] = keep * param[i] - rate * m / (std::sqrt(v) * root2 + eps);
    }
  });
}

}  // namespace

void AdamWCpu(const AdamWArgs& args) {
  AdamWControl& control = *args.control;
  if (!std::isfinite(control.norm)) {
    ++control.skipped;
    return;
  }
  const double step = static_cast<double>(++control.steps);
  control.rate = control.lr / (1 - std::pow(args.beta1, step));
  control.root2 = 1 / std::sqrt(1 - std::pow(args.beta2, step));
  DispatchCpuFloat(args.tensors->dtype(), [&]<typename T>() {
    if (args.exp_avg_dtype == DType::kBFloat16)
      return Update<T, BFloat16>(args);
    CHECK(args.exp_avg_dtype == DTypeOf<T>::value);
    Update<T, T>(args);
  });
}

// Parameters on the CPU are their own masters.
void JoinMastersCpu(const MastersArgs&) {}
void SplitMastersCpu(const MastersArgs&) {}

}  // namespace mimo::kernels
