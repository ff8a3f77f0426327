#include <cmath>
#include <numbers>

#include "kernels/base/parallel.h"
#include "kernels/random/philox.h"

namespace mimo {
namespace {

// A pair of independent normals from a pair of uniforms (Box & Muller 1958);
// `radius` is in (0, 1].
struct NormalPair {
  double cos, sin;
};
NormalPair BoxMuller(double radius, double angle) {
  const double r = std::sqrt(-2 * std::log(radius));
  const double a = 2 * std::numbers::pi * angle;
  return {r * std::cos(a), r * std::sin(a)};
}

}  // namespace

uint32_t PhiloxSequence::Next() {
  const uint32_t word = Philox(seed_, stream_, drawn_ / 4)[drawn_ % 4];
  ++drawn_;
  return word;
}

double PhiloxSequence::Uniform() {
  const uint64_t high = Next();
  return static_cast<double>((high << 32 | Next()) >> 11) * 0x1p-53;
}

double PhiloxSequence::Normal() {
  const double radius = 1 - Uniform();
  return BoxMuller(radius, Uniform()).cos;
}

uint64_t PhiloxSequence::Below(uint64_t n) {
  CHECK_GT(n, 0u);
  // The lowest 2^64 mod n values are drawn again: a multiple of n is left.
  const uint64_t first = -n % n;
  uint64_t value;
  do {
    const uint64_t high = Next();
    value = high << 32 | Next();
  } while (value < first);
  return value % n;
}

}  // namespace mimo

namespace mimo::kernels {
namespace {

// out[i] = value(words of block e / 4, e % 4), e the element that i is.
template <typename T, typename F>
void Fill(const RandomFillArgs& args, F value) {
  T* out = static_cast<T*>(args.out);
  const int64_t columns = args.columns == 0 ? args.size : args.columns;
  ParallelFor(args.size, 1 << 10, [&](int64_t begin, int64_t end) {
    std::array<double, 4> block;
    uint64_t counter = 0;
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t e = args.offset + i / columns * args.stride + i % columns;
      if (i == begin || e / 4 != counter) {
        counter = e / 4;
        block = value(Philox(args.seed, args.stream, counter));
      }
      out[i] = static_cast<T>(block[e % 4]);
    }
  });
}

}  // namespace

void FillNormalCpu(const RandomFillArgs& args, double mean, double std) {
  CHECK_GE(args.size, 0);
  DispatchCpuFloat(args.dtype, [&]<typename T>() {
    Fill<T>(args, [&](const std::array<uint32_t, 4>& words) {
      const NormalPair a =
          BoxMuller((words[0] + 1.0) * 0x1p-32, words[1] * 0x1p-32);
      const NormalPair b =
          BoxMuller((words[2] + 1.0) * 0x1p-32, words[3] * 0x1p-32);
      return std::array<double, 4>{mean + std * a.cos, mean + std * a.sin,
                                   mean + std * b.cos, mean + std * b.sin};
    });
  });
}

}  // namespace mimo::kernels
