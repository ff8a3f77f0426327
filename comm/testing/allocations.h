// How often this thread has allocated: a program that links this counts every
// operator new.
#ifndef MIMO_COMM_TESTING_ALLOCATIONS_H_
#define MIMO_COMM_TESTING_ALLOCATIONS_H_

#include <cstdint>

namespace mimo {

int64_t Allocations();

}  // namespace mimo

#endif  // MIMO_COMM_TESTING_ALLOCATIONS_H_
