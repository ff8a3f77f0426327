// The end of a process that a device has no memory for.
#ifndef MIMO_KERNELS_BASE_OUT_OF_MEMORY_H_
#define MIMO_KERNELS_BASE_OUT_OF_MEMORY_H_

#include <string>

#include "absl/strings/string_view.h"
#include "kernels/base/stream.h"

namespace mimo {

// Says in one line of stderr what was `wanted` ("0.34 GiB wanted"), what the
// device has and who holds it; exit code 2. Of several threads the first does.
[[noreturn]] void OutOfMemory(Device device, absl::string_view wanted);

// Who holds a device's memory, in words: what allocators above say of
// themselves.
using MemoryHolders = std::string (*)(Device device);
void SetMemoryHolders(MemoryHolders holders);

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_OUT_OF_MEMORY_H_
