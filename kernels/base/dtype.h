// DType: the element type of a buffer.
//
// float32 and bfloat16 train. float64 is the oracle's dtype: every op runs in
// it on the CPU through the same entry point, by the plainest correct code, so
// a kernel or a whole model is checked against itself in higher precision
// (docs/adr/0004). The 8-bit floats are operands of products
// (kernels/quantise).
#ifndef MIMO_KERNELS_BASE_DTYPE_H_
#define MIMO_KERNELS_BASE_DTYPE_H_

#include <cstdint>
#include <utility>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "absl/strings/string_view.h"

namespace mimo {

enum class DType : uint8_t {
  kFloat32,
  kFloat64,
  kBFloat16,
  kFloat16,
  kInt32,
  kInt64,
  kUInt8,
  kFloat8E4M3,
  kFloat8E5M2
};

inline int64_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    case DType::kUInt8:
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2:
      return 1;
  }
  LOG(FATAL) << "no such dtype: " << static_cast<int>(dtype);
}

inline absl::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
    case DType::kUInt8:
      return "uint8";
    case DType::kFloat8E4M3:
      return "float8_e4m3";
    case DType::kFloat8E5M2:
      return "float8_e5m2";
  }
  LOG(FATAL) << "no such dtype: " << static_cast<int>(dtype);
}

inline bool IsFloat8(DType dtype) {
  return dtype == DType::kFloat8E4M3 || dtype == DType::kFloat8E5M2;
}

// The dtype of sums, statistics and main gradients of `dtype` values.
inline DType AccumulatorOf(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kFloat32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kFloat64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kInt32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kInt64;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::kUInt8;
};

// Calls f.template operator()<T>() with the CPU type of a floating `dtype`:
// the CPU computes in float32 and float64.
template <typename F>
void DispatchCpuFloat(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f.template operator()<float>();
    case DType::kFloat64:
      return f.template operator()<double>();
    default:
      LOG(FATAL) << "the CPU computes in float32 or float64, not "
                 << Name(dtype);
  }
}

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_DTYPE_H_
