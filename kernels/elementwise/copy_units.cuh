// What copies of any dtype share: the widest access that fits.
#ifndef MIMO_KERNELS_ELEMENTWISE_COPY_UNITS_CUH_
#define MIMO_KERNELS_ELEMENTWISE_COPY_UNITS_CUH_

#include <cstdint>
#include <initializer_list>

#include "kernels/base/cuda.cuh"

namespace mimo::kernels {

// Calls f.template operator()<Unit>() with the widest type, of 16 bytes at
// most, whose size divides all sizes (bytes) and addresses.
template <typename F>
void DispatchUnit(std::initializer_list<int64_t> sizes,
                  std::initializer_list<const void*> addresses, F&& f) {
  int64_t bits = 0;  // a power of two divides this when it divides each
  for (int64_t size : sizes) bits |= size;
  for (const void* address : addresses)
    bits |= reinterpret_cast<intptr_t>(address);
  if (bits % 16 == 0) return f.template operator()<uint4>();
  if (bits % 8 == 0) return f.template operator()<uint2>();
  if (bits % 4 == 0) return f.template operator()<uint32_t>();
  if (bits % 2 == 0) return f.template operator()<uint16_t>();
  f.template operator()<uint8_t>();
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ELEMENTWISE_COPY_UNITS_CUH_
