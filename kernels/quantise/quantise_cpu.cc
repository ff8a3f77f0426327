#include <algorithm>
#include <atomic>
#include <bit>

#include "kernels/base/float8.h"
#include "kernels/base/parallel.h"
#include "kernels/quantise/quantise.h"

namespace mimo::kernels {
namespace {

// The bits of a size: their order is that of sizes, behind it NaNs.
uint32_t SizeBits(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffff; }

template <typename T>
float Amax(const T* x, int64_t size) {
  std::atomic<uint32_t> all = 0;
  ParallelFor(size, 1 << 15, [&](int64_t begin, int64_t end) {
    uint32_t most = 0;
    for (int64_t i = begin; i < end; ++i)
      most = std::max(most, SizeBits(static_cast<float>(x[i])));
    uint32_t before = all;
    while (before < most && !all.compare_exchange_weak(before, most)) {
    }
  });
  return std::bit_cast<float>(all.load());
}

template <typename T, typename Code>
void Quantise(const QuantiseArgs& args) {
  const int64_t rows = args.rows, columns = args.columns;
  const T* x = static_cast<const T*>(args.x);
  Code* codes = static_cast<Code*>(args.codes);
  const float amax = Amax(x, rows * columns);
  const float s = QuantisationFactor(amax, Code::kLargest);
  args.scale[0] = 1 / s;
  args.scale[1] = amax;
  ParallelFor(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        codes[args.transpose ? c * rows + r : r * columns + c] =
            Code(static_cast<float>(x[r * columns + c]) * s);
      }
    }
  });
}

}  // namespace

void QuantiseCpu(const QuantiseArgs& args) {
  Check(args);
  DispatchCpuFloat(args.dtype, [&]<typename T>() {
    if (args.code_dtype == DType::kFloat8E4M3) {
      Quantise<T, Float8E4M3>(args);
    } else {
      Quantise<T, Float8E5M2>(args);
    }
  });
}

}  // namespace mimo::kernels
