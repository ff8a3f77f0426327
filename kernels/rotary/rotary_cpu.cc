#include <cmath>

#include "kernels/base/parallel.h"
#include "kernels/reduce/row_chunks.h"
#include "kernels/rotary/rotary.h"

namespace mimo::kernels {
namespace {

template <typename T>
void Rotate(const RotaryArgs& args) {
  const int64_t half = args.head_dim / 2;
  const int64_t width = args.heads * args.head_dim;
  const T sign = args.inverse ? -1 : 1;
  ParallelFor(args.tokens, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t position = args.positions != nullptr
                                   ? args.positions[t]
                                   : args.first_position + t % args.seq;
      CHECK(position >= 0 && position < args.max_position)
          << "Rotary: the position of row " << t << " is " << position
          << ", not in [0, " << args.max_position << ")";
      const T* cos = static_cast<const T*>(args.cos) + position * half;
      const T* sin = static_cast<const T*>(args.sin) + position * half;
      for (int64_t n = 0; n < args.heads; ++n) {
        T* low = static_cast<T*>(args.x) + t * args.stride + n * args.head_dim;
        T* high = low + half;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          const T a = low[i], b = high[i];
          const T c = cos[i], s = sign * sin[i];
          low[i] = a * c - b * s;
          high[i] = b * c + a * s;
        }
      }
    }
  });
}

}  // namespace

void RotaryCpu(const RotaryArgs& args) {
  CHECK_GE(args.tokens, 0);
  CHECK_EQ(args.head_dim % 2, 0);
  CHECK_GE(args.stride, args.heads * args.head_dim);
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Rotate<T>(args); });
}

void RotaryTable(void* cos, void* sin, int64_t max_position, int64_t head_dim,
                 double base, DType dtype) {
  CHECK_EQ(head_dim % 2, 0);
  const int64_t half = head_dim / 2;
  DispatchCpuFloat(AccumulatorOf(dtype), [&]<typename T>() {
    for (int64_t i = 0; i < half; ++i) {
      const double frequency = std::pow(
          base, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
      for (int64_t p = 0; p < max_position; ++p) {
        const double angle = static_cast<double>(p) * frequency;
        static_cast<T*>(cos)[p * half + i] = static_cast<T>(std::cos(angle));
        static_cast<T*>(sin)[p * half + i] = static_cast<T>(std::sin(angle));
      }
    }
  });
}

}  // namespace mimo::kernels
