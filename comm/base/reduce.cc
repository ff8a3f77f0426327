#include "comm/base/reduce.h"

#include <algorithm>
#include <concepts>
#include <cstring>
#include <type_traits>

#include "kernels/base/dispatch.h"

namespace mimo {
namespace {

// What elements of T are reduced in. Unsigned, as signed sums must not
// overflow.
template <typename T, ReduceOp kOp>
using Sum = std::conditional_t<
    !std::is_arithmetic_v<T>, float,
    std::conditional_t<
        std::is_same_v<T, int32_t> && kOp == ReduceOp::kSum, uint32_t,
        std::conditional_t<std::is_same_v<T, int64_t> && kOp == ReduceOp::kSum,
                           uint64_t, T>>>;

template <ReduceOp kOp, typename A>
A Combine(A a, A b) {
  if constexpr (kOp == ReduceOp::kSum) return a + b;
  if constexpr (kOp == ReduceOp::kMax) return a < b ? b : a;
  if constexpr (kOp == ReduceOp::kMin) return b < a ? b : a;
}

template <typename T, ReduceOp kOp>
void Reduce(absl::Span<const void* const> from, absl::Span<void* const> to,
            int64_t begin, int64_t end) {
  using A = Sum<T, kOp>;
  constexpr int64_t kBlock = 1024;  // elements that stay in the first cache
  A sums[kBlock];
  T results[kBlock];
  for (; begin < end; begin += kBlock) {
    const int64_t count = std::min(kBlock, end - begin);
    for (size_t p = 0; p < from.size(); ++p) {
      const T* x = static_cast<const T*>(from[p]) + begin;
      if (p == 0) {
        for (int64_t i = 0; i < count; ++i) sums[i] = static_cast<A>(x[i]);
      } else {
        for (int64_t i = 0; i < count; ++i)
          sums[i] = Combine<kOp>(sums[i], static_cast<A>(x[i]));
      }
    }
    for (int64_t i = 0; i < count; ++i) results[i] = static_cast<T>(sums[i]);
    for (void* y : to)
      std::memcpy(static_cast<T*>(y) + begin, results, count * sizeof(T));
  }
}

}  // namespace

void ReduceRange(absl::Span<const void* const> from, absl::Span<void* const> to,
                 int64_t begin, int64_t end, DType dtype, ReduceOp op) {
  DispatchDType(dtype, [&]<typename T>() {
    switch (op) {
      case ReduceOp::kSum:
        return Reduce<T, ReduceOp::kSum>(from, to, begin, end);
      case ReduceOp::kMax:
        return Reduce<T, ReduceOp::kMax>(from, to, begin, end);
      case ReduceOp::kMin:
        return Reduce<T, ReduceOp::kMin>(from, to, begin, end);
    }
  });
}

}  // namespace mimo
