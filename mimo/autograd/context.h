// Context: where an op runs and whether it is recorded. Passed explicitly; the
// library has no globals.
#ifndef MIMO_MIMO_AUTOGRAD_CONTEXT_H_
#define MIMO_MIMO_AUTOGRAD_CONTEXT_H_

#include <utility>

#include "kernels/base/stream.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

class Profiler;
class Tape;

struct Context {
  Allocator* allocator;
  Stream compute = allocator->stream();
  // Where collectives run, beside what is on `compute`. Memory is the compute
  // stream's: what a collective reads or writes is allocated before the comm
  // stream waits for compute, and freed after compute waits for it.
  Stream comm = compute;
  Tape* tape = nullptr;  // null: nothing is recorded (evaluation, generation)
  Profiler* profiler = nullptr;  // null: nothing is measured

  Tensor Empty(Shape shape, DType dtype) const {
    return Tensor(*allocator, std::move(shape), dtype);
  }
};

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_CONTEXT_H_
