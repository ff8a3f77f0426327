#include <algorithm>
#include <type_traits>

#include "absl/base/attributes.h"
#include "kernels/activation/bias_activation.h"
#include "kernels/base/parallel.h"
#include "kernels/base/vec_math.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {
namespace {

// An activation: Value(z) and its Derivative(z).
struct Identity {
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Value(T z) {
    return z;
  }
};
struct Gelu {
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Value(T z) {
    return z * NormalCdf(z);
  }
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Derivative(T z) {
    constexpr T kDensity = 0.39894228040143267794;  // 1 / sqrt(2 pi)
    return NormalCdf(z) + z * kDensity * Exp(T{-0.5} * z * z);
  }
};
struct GeluTanh {
  static constexpr double kSlope = 0.79788456080286535588;  // sqrt(2 / pi)
  static constexpr double kCubic = 0.044715;
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Inner(T z) {
    return Tanh(T{kSlope} * (z + T{kCubic} * z * z * z));
  }
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Value(T z) {
    return T{0.5} * z * (1 + Inner(z));
  }
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Derivative(T z) {
    const T t = Inner(z);
    return T{0.5} *
           (1 + t + z * (1 - t * t) * T{kSlope} * (1 + T{3 * kCubic} * z * z));
  }
};
// z * sigmoid(a z)
template <typename T>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline T Swish(T z, T a) {
  return z * Sigmoid(a * z);
}
template <typename T>
ABSL_ATTRIBUTE_ALWAYS_INLINE inline T SwishDerivative(T z, T a) {
  const T s = Sigmoid(a * z);
  return s * (1 + a * z * (1 - s));
}
struct QuickGelu {
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Value(T z) {
    return Swish(z, T(1.702));
  }
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Derivative(T z) {
    return SwishDerivative(z, T(1.702));
  }
};
struct Silu {
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Value(T z) {
    return Swish(z, T{1});
  }
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Derivative(T z) {
    return SwishDerivative(z, T{1});
  }
};
struct Relu {
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Value(T z) {
    return z < 0 ? T{0} : z;  // NaN stays NaN
  }
  template <typename T>
  ABSL_ATTRIBUTE_ALWAYS_INLINE static T Derivative(T z) {
    return z > 0 ? T{1} : T{0};
  }
};

// Calls f.template operator()<A>() with the type above of `activation`, which
// is not identity.
template <typename F>
void Dispatch(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kGelu:
      return f.template operator()<Gelu>();
    case Activation::kGeluTanh:
      return f.template operator()<GeluTanh>();
    case Activation::kQuickGelu:
      return f.template operator()<QuickGelu>();
    case Activation::kSilu:
      return f.template operator()<Silu>();
    case Activation::kRelu:
      return f.template operator()<Relu>();
    case Activation::kIdentity:
      break;
  }
  LOG(FATAL) << "no such activation: " << static_cast<int>(activation);
}

template <typename T, typename A>
void Forward(const BiasActivationForwardArgs& args) {
  const int64_t features = args.features;
  const T* bias = static_cast<const T*>(args.bias);
  ParallelFor(args.tokens, RowGrain(features), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* x = static_cast<const T*>(args.x) + t * features;
      T* y = static_cast<T*>(args.y) + t * features;
      if (args.z != nullptr) {
        T* z = static_cast<T*>(args.z) + t * features;
#pragma omp simd
        for (int64_t f = 0; f < features; ++f) {
          z[f] = bias != nullptr ? x[f] + bias[f] : x[f];
          y[f] = A::Value(z[f]);
        }
      } else if (bias != nullptr) {
#pragma omp simd
        for (int64_t f = 0; f < features; ++f) y[f] = A::Value(x[f] + bias[f]);
      } else {
#pragma omp simd
        for (int64_t f = 0; f < features; ++f) y[f] = A::Value(x[f]);
      }
    }
  });
}

// dx of one row, which is dy where A is the identity.
template <typename T, typename A>
const T* BackwardRow(const BiasActivationBackwardArgs& args, int64_t t) {
  const int64_t features = args.features;
  const T* dy = static_cast<const T*>(args.dy) + t * features;
  if constexpr (std::is_same_v<A, Identity>) {
    return dy;
  } else {
    const T* x = static_cast<const T*>(args.x) + t * features;
    const T* bias = static_cast<const T*>(args.bias);
    T* dx = static_cast<T*>(args.dx) + t * features;
    if (bias != nullptr) {
#pragma omp simd
      for (int64_t f = 0; f < features; ++f)
        dx[f] = A::Derivative(x[f] + bias[f]) * dy[f];
    } else {
#pragma omp simd
      for (int64_t f = 0; f < features; ++f)
        dx[f] = A::Derivative(x[f]) * dy[f];
    }
    return dx;
  }
}

template <typename T, typename A>
void Backward(const BiasActivationBackwardArgs& args) {
  const int64_t features = args.features;
  T* partials = static_cast<T*>(args.workspace);
  ForRowChunks(args.tokens, features,
               [&](int64_t chunk, int64_t begin, int64_t end) {
                 T* partial = partials + chunk * features;
                 if (args.dbias != nullptr)
                   std::fill_n(partial, features, T{0});
                 for (int64_t t = begin; t < end; ++t) {
                   const T* dx = BackwardRow<T, A>(args, t);
                   if (args.dbias == nullptr) continue;
#pragma omp simd
                   for (int64_t f = 0; f < features; ++f) partial[f] += dx[f];
                 }
               });
  if (args.dbias != nullptr) {
    SumRowChunks(partials, RowChunks(args.tokens), features, args.dbias_beta,
                 static_cast<T*>(args.dbias));
  }
}

}  // namespace

void BiasActivationForwardCpu(const BiasActivationForwardArgs& args) {
  CHECK_GE(args.tokens, 0);
  CHECK_GT(args.features, 0);
  DispatchCpuFloat(args.dtype, [&]<typename T>() {
    if (args.activation == Activation::kIdentity)
      return Forward<T, Identity>(args);
    Dispatch(args.activation, [&]<typename A>() { Forward<T, A>(args); });
  });
}

void BiasActivationBackwardCpu(const BiasActivationBackwardArgs& args) {
  CHECK_GE(args.tokens, 0);
  CHECK_GT(args.features, 0);
  CHECK(args.dbias == nullptr || args.tokens == 0 || args.workspace != nullptr)
      << "BiasActivation: dbias needs a workspace";
  if (args.activation == Activation::kIdentity) {
    CHECK(args.x == nullptr && args.dx == nullptr)
        << "BiasActivation: the identity's dx is dy";
    if (args.dbias == nullptr) return;
  }
  DispatchCpuFloat(args.dtype, [&]<typename T>() {
    if (args.activation == Activation::kIdentity)
      return Backward<T, Identity>(args);
    Dispatch(args.activation, [&]<typename A>() { Backward<T, A>(args); });
  });
}

int64_t BiasActivationBackwardWorkspaceBytes(int64_t tokens, int64_t features,
                                             DType dtype, Device device) {
  const int64_t rows =
      device == Device::kCpu ? RowChunks(tokens) : kCudaPartialRows;
  return rows * features * SizeOf(AccumulatorOf(dtype));
}

}  // namespace mimo::kernels
