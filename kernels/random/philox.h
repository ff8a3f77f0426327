// Philox4x32-10: random numbers as a pure function of (seed, stream, counter).
// Any value can be computed alone, on any device and in any order, so a replay
// or a resume is bitwise the same.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#ifndef MIMO_KERNELS_RANDOM_PHILOX_H_
#define MIMO_KERNELS_RANDOM_PHILOX_H_

#include <array>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/on_cuda.h"
#include "kernels/base/stream.h"

namespace mimo {

// Ten rounds on counter words {counter_lo, counter_hi, stream_lo, stream_hi}
// with key {seed_lo, seed_hi}. constexpr: for GPUs too.
constexpr std::array<uint32_t, 4> Philox(uint64_t seed, uint64_t stream,
                                         uint64_t counter) {
  uint32_t c0 = static_cast<uint32_t>(counter);
  uint32_t c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream);
  uint32_t c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;  // golden ratio
    k1 += 0xBB67AE85;  // sqrt(3) - 1
  }
  return {c0, c1, c2, c3};
}

// A sequence of draws: host code that wants one number after another. Its state
// is three integers, so it is saved and restored by value.
class PhiloxSequence {
 public:
  PhiloxSequence(uint64_t seed, uint64_t stream)
      : seed_(seed), stream_(stream) {}
  uint32_t Next();             // uniform on 32 bits
  double Uniform();            // [0, 1), 53 bits (two draws)
  double Normal();             // mean 0, variance 1 (Box-Muller, two uniforms)
  uint64_t Below(uint64_t n);  // uniform on [0, n), n > 0, no bias

 private:
  uint64_t seed_, stream_;
  uint64_t drawn_ = 0;  // 32-bit words drawn so far
};

}  // namespace mimo

namespace mimo::kernels {

// out[i] = mean + std * normal(seed, stream, offset + i). Element i depends on
// offset + i alone. Of `columns` of a matrix whose rows have `stride` elements,
// row-major: element (r, c) of out is that of offset + r * stride + c. Computed
// in double and rounded to dtype: the same on every device but for the last
// bits of log, sine and cosine in double.
struct RandomFillArgs {
  void* out;  // [size] dtype
  int64_t size;
  uint64_t seed, stream;
  uint64_t offset = 0;
  int64_t columns = 0, stride = 0;  // 0: one row
  DType dtype;
};
void FillNormalCpu(const RandomFillArgs& args, double mean, double std);
void FillNormalCuda(const RandomFillArgs& args, double mean, double std,
                    Stream stream);
inline void FillNormal(const RandomFillArgs& args, double mean, double std,
                       Stream stream) {
  if (stream.device == Device::kCpu) return FillNormalCpu(args, mean, std);
  MIMO_ON_CUDA(FillNormalCuda(args, mean, std, stream));
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_RANDOM_PHILOX_H_
