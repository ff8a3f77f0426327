#include "mimo/checkpoint/convert.h"

#include <bit>
#include <cmath>
#include <concepts>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/bfloat16.h"

namespace mimo {
namespace {

// IEEE 754 binary16: 5 bits of exponent, bias 15, 10 of mantissa.
struct Float16 {
  uint16_t bits;
  Float16() = default;
  explicit Float16(float value) {
    const uint32_t wide = std::bit_cast<uint32_t>(value);
    const uint32_t size = wide & 0x7fffffff;
    uint32_t half;
    if (size > 0x7f800000) {  // NaN
      half = 0x7e00 | ((size >> 13) & 0x3ff);
    } else if (size >= 0x477ff000) {  // 65520 and more round to infinity
      half = 0x7c00;
    } else if (size < 0x38800000) {
      // Below 2^-14: a multiple of 2^-24, which is the last place of 0.5.
      half = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) -
             std::bit_cast<uint32_t>(0.5f);
    } else {
      half = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
    }
    bits = static_cast<uint16_t>(half | ((wide >> 16) & 0x8000));
  }
  explicit operator float() const {
    const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
    const uint32_t size = uint32_t{bits & 0x7fffu} << 13;
    // The exponent's bias by a product, which is right for subnormals too.
    const uint32_t wide =
        std::bit_cast<uint32_t>(std::bit_cast<float>(size) * 0x1p112f);
    const bool special = (bits & 0x7c00) == 0x7c00;  // infinite or NaN
    return std::bit_cast<float>(sign | (special ? size | 0x7f800000 : wide));
  }
};

template <typename F>
void Dispatch(DType dtype, F&& f) {
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
  }
}

template <typename T>
concept Half = std::same_as<T, BFloat16> || std::same_as<T, Float16>;

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
      } else if constexpr (Half<From> || Half<To>) {
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
  Dispatch(from_dtype, [&]<typename From>() {
    Dispatch(to_dtype, [&]<typename To>() {
      status = Convert<From, To>(static_cast<const char*>(from),
                                 static_cast<char*>(to), count);
    });
  });
  return status;
}

}  // namespace mimo
