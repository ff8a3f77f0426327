// Philox4x32-10: random numbers as a pure function of (seed, stream, counter).
// Any value can be computed alone, on any device and in any order, so a replay
// or a resume is bitwise the same.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#ifndef MIMO_KERNELS_RANDOM_PHILOX_H_
#define MIMO_KERNELS_RANDOM_PHILOX_H_

#include <array>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo {

// Ten rounds on counter words {counter_lo, counter_hi, stream_lo, stream_hi}
// with key {seed_lo, seed_hi}.
std::array<uint32_t, 4> Philox(uint64_t seed, uint64_t stream,
                               uint64_t counter);

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

// out[i] = mean + std * normal(seed, stream, offset + i); uniform in [low,
// high) likewise. Element i depends on offset + i alone.
struct RandomFillArgs {
  void* out;  // [size] dtype
  int64_t size;
  uint64_t seed, stream;
  uint64_t offset = 0;
  DType dtype;
};
void FillNormal(const RandomFillArgs& args, double mean, double std,
                Stream stream);
void FillUniform(const RandomFillArgs& args, double low, double high,
                 Stream stream);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_RANDOM_PHILOX_H_
