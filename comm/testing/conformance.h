// The tests that every kind of communicator passes: each operation, dtype,
// reduction, group size and buffer size, on random data.
//
// Every rank of a world calls these functions at once; so the same suite runs
// over threads, processes and GPUs. Inputs come from a hash of (seed, case,
// rank, place), so that each rank knows all ranks' inputs and computes what it
// should find. Moved data, integers, maxima and minima must be exact. A sum of
// n floats may be off by (n - 1) roundings in its dtype, each at most u of a
// partial sum, and those are at most S = sum |x|: so by n * u * S, for the
// rounding of the result as well (Higham 2002, "Accuracy and Stability of
// Numerical Algorithms", eq. 4.4); all ranks must get the same bits. Bytes
// beside a result, and inputs, must stay as they were.
#ifndef MIMO_COMM_TESTING_CONFORMANCE_H_
#define MIMO_COMM_TESTING_CONFORMANCE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "comm/base/communicator.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo {

// Under ThreadSanitizer fewer of the same: memory is not shared otherwise for
// another dtype or size.
#ifdef __SANITIZE_THREAD__
inline constexpr bool kFewer = true;
#else
inline constexpr bool kFewer = false;
#endif

struct ConformanceOptions {
  // The world is split into groups of each of these sizes; ranks left over are
  // in none, and sizes beyond the world's are left out.
  std::vector<int> group_sizes =
      kFewer ? std::vector<int>{2, 3, 8} : std::vector<int>{1, 2, 3, 4, 8};
  std::vector<DType> dtypes =
      kFewer ? std::vector<DType>{DType::kBFloat16, DType::kInt32}
             : std::vector<DType>{DType::kFloat32,  DType::kFloat64,
                                  DType::kBFloat16, DType::kFloat16,
                                  DType::kInt32,    DType::kInt64,
                                  DType::kUInt8};
  std::vector<int64_t> counts = {0, 1, 1001};
  // Of large buffers in all (for operations with a part a rank, parts
  // together), of every dtype, reductions and places in turn. 0: none.
  int64_t large_count = kFewer ? 1 << 14 : 1 << 20;
  uint64_t seed = 1;
};

// OK if all is right on all ranks. Else the first error that this rank found,
// or that another found one, or that the world failed.
absl::Status CheckConformance(Communicator& world, Stream stream,
                              const ConformanceOptions& options = {});

// The same for `rounds` random operations of small sizes on random groups.
absl::Status CheckRandomOperations(Communicator& world, Stream stream,
                                   int rounds, uint64_t seed);

}  // namespace mimo

#endif  // MIMO_COMM_TESTING_CONFORMANCE_H_
