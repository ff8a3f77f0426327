#include "mimo/checkpoint/convert.h"

#include <bit>
#include <cmath>
#include <concepts>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/dispatch.h"

namespace mimo {
namespace {

template <typename From, typename To>
absl::Status Convert(const char* from, char* to, int64_t count) {
  if constexpr (std::integral<To> && !std::integral<From>) {
    return absl::InvalidArgumentError("floats, wanted integers");
  } else {
    for (int64_t i = 0; i < count; ++i) {
      From value;
      std::memcpy(&value, from + i * sizeof(From), sizeof(From));
      To converted;
      if constexpr (std::integral<To>) {
        if (!std::in_range<To>(value)) {
          return absl::InvalidArgumentError(
              absl::StrCat(value, " in place ", i, ", wanted a value of ",
                           Name(DTypeOf<To>::value)));
        }
        converted = static_cast<To>(value);
      } else if constexpr (!std::is_arithmetic_v<From> ||
                           !std::is_arithmetic_v<To>) {
        converted = static_cast<To>(static_cast<float>(value));
      } else {
        converted = static_cast<To>(value);
      }
      std::memcpy(to + i * sizeof(To), &converted, sizeof(To));
    }
    return absl::OkStatus();
  }
}

}  // namespace

absl::Status ConvertElements(const void* from, DType from_dtype, void* to,
                             DType to_dtype, int64_t count) {
  if (from_dtype == to_dtype) {
    if (count > 0) std::memcpy(to, from, count * SizeOf(to_dtype));
    return absl::OkStatus();
  }
  absl::Status status;
  DispatchDType(from_dtype, [&]<typename From>() {
    DispatchDType(to_dtype, [&]<typename To>() {
      status = Convert<From, To>(static_cast<const char*>(from),
                                 static_cast<char*>(to), count);
    });
  });
  return status;
}

}  // namespace mimo
