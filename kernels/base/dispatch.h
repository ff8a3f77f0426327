// DispatchDType: from a dtype to the host's type of its elements.
#ifndef MIMO_KERNELS_BASE_DISPATCH_H_
#define MIMO_KERNELS_BASE_DISPATCH_H_

#include <cstdint>

#include "absl/log/log.h"
#include "kernels/base/bfloat16.h"
#include "kernels/base/dtype.h"
#include "kernels/base/float16.h"
#include "kernels/base/float8.h"

namespace mimo {

// Calls f.template operator()<T>() and returns what that does.
template <typename F>
decltype(auto) DispatchDType(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f.template operator()<float>();
    case DType::kFloat64:
      return f.template operator()<double>();
    case DType::kBFloat16:
      return f.template operator()<BFloat16>();
    case DType::kFloat16:
      return f.template operator()<Float16>();
    case DType::kInt32:
      return f.template operator()<int32_t>();
    case DType::kInt64:
      return f.template operator()<int64_t>();
    case DType::kUInt8:
      return f.template operator()<uint8_t>();
    case DType::kFloat8E4M3:
      return f.template operator()<Float8E4M3>();
    case DType::kFloat8E5M2:
      return f.template operator()<Float8E5M2>();
  }
  LOG(FATAL) << "no such dtype: " << static_cast<int>(dtype);
}

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_DISPATCH_H_
