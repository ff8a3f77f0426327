#include <type_traits>

#include "kernels/base/bfloat16.h"
#include "kernels/base/parallel.h"
#include "kernels/elementwise/cast.h"

namespace mimo::kernels {
namespace {

template <typename F>
void Dispatch(DType dtype, F&& f) {
  if (dtype == DType::kBFloat16) return f.template operator()<BFloat16>();
  DispatchCpuFloat(dtype, f);
}

template <typename Src, typename Dst>
Dst Converted(Src value) {
  if constexpr (std::is_same_v<Src, Dst>) {
    return value;
  } else if constexpr (std::is_same_v<Src, BFloat16>) {
    return static_cast<float>(value);
  } else if constexpr (std::is_same_v<Dst, BFloat16>) {
    return BFloat16(static_cast<float>(value));
  } else {
    return static_cast<Dst>(value);
  }
}

}  // namespace

void CastCpu(const CastArgs& args) {
  Dispatch(args.src_dtype, [&]<typename Src>() {
    Dispatch(args.dst_dtype, [&]<typename Dst>() {
      const Src* src = static_cast<const Src*>(args.src);
      Dst* dst = static_cast<Dst*>(args.dst);
      ParallelFor(args.size, 1 << 15, [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i)
          dst[i] = Converted<Src, Dst>(src[i]);
      });
    });
  });
}

}  // namespace mimo::kernels
