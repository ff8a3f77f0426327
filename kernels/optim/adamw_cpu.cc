#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/parallel.h"
#include "kernels/optim/adamw.h"
#include "kernels/optim/blocks.h"

namespace mimo::kernels {
namespace {

template <typename T>
void Update(const AdamWArgs& args) {
  const double step = static_cast<double>(args.step);
  const T beta1 = static_cast<T>(args.beta1);
  const T beta2 = static_cast<T>(args.beta2);
  const T rest1 = static_cast<T>(1 - args.beta1);
  const T rest2 = static_cast<T>(1 - args.beta2);
  const double correction1 = 1 - std::pow(args.beta1, step);
  const T root2 = static_cast<T>(1 / std::sqrt(1 - std::pow(args.beta2, step)));
  const T eps = static_cast<T>(args.eps);
  const T scale = static_cast<T>(*args.grad_scale);
  ForBlocks(args.tensors, [&](const AdamWTensor& tensor, int64_t, int64_t begin,
                              int64_t end) {
    const T keep = static_cast<T>(1 - tensor.lr * tensor.weight_decay);
    const T rate = static_cast<T>(tensor.lr / correction1);
    T* param = static_cast<T*>(tensor.param);
    const T* grad = static_cast<const T*>(tensor.grad);
    T* exp_avg = static_cast<T*>(tensor.exp_avg);
    T* exp_avg_sq = static_cast<T*>(tensor.exp_avg_sq);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const T g = grad[i] * scale;
      const T m = beta1 * exp_avg[i] + rest1 * g;
      const T v = beta2 * exp_avg_sq[i] + rest2 * g * g;
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
      param[i] = keep * param[i] - rate * m / (std::sqrt(v) * root2 + eps);
    }
  });
}

}  // namespace

void AdamW(const AdamWArgs& args, Stream) {
  CHECK_GE(args.step, 1);
  CHECK(args.grad_scale != nullptr);
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Update<T>(args); });
}

}  // namespace mimo::kernels
