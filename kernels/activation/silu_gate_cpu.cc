#include "kernels/activation/silu_gate.h"
#include "kernels/base/parallel.h"
#include "kernels/base/vec_math.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {
namespace {

template <typename T>
void Forward(const SiluGateForwardArgs& args) {
  const int64_t features = args.features;
  ParallelFor(args.tokens, RowGrain(features), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* gate = static_cast<const T*>(args.x) + t * 2 * features;
      const T* up = gate + features;
      T* y = static_cast<T*>(args.y) + t * features;
#pragma omp simd
      for (int64_t f = 0; f < features; ++f)
        y[f] = gate[f] * Sigmoid(gate[f]) * up[f];
    }
  });
}

template <typename T>
void Backward(const SiluGateBackwardArgs& args) {
  const int64_t features = args.features;
  ParallelFor(args.tokens, RowGrain(features), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* gate = static_cast<const T*>(args.x) + t * 2 * features;
      const T* up = gate + features;
      const T* dy = static_cast<const T*>(args.dy) + t * features;
      T* dgate = static_cast<T*>(args.dx) + t * 2 * features;
      T* dup = dgate + features;
#pragma omp simd
      for (int64_t f = 0; f < features; ++f) {
        const T g = gate[f], u = up[f];
        const T s = Sigmoid(g);
        dgate[f] = dy[f] * u * s * (1 + g * (1 - s));
        dup[f] = dy[f] * g * s;
      }
    }
  });
}

}  // namespace

void SiluGateForwardCpu(const SiluGateForwardArgs& args) {
  CHECK_GE(args.tokens, 0);
  CHECK_GT(args.features, 0);
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Forward<T>(args); });
}

void SiluGateBackwardCpu(const SiluGateBackwardArgs& args) {
  CHECK_GE(args.tokens, 0);
  CHECK_GT(args.features, 0);
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Backward<T>(args); });
}

}  // namespace mimo::kernels
