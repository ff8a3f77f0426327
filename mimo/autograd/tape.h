// Tape: the record of one forward pass, walked backwards once.
//
// A linear list of coarse nodes over the explicit backward kernels. The rules
// (docs/adr/0001-tape.md gives the reasons):
//  1 Kernel pairs stay explicit; nodes only call them.
//  2 One tape a (stage, micro-batch), in the Context. Several may be alive.
//  3 Nodes are appended in execution order and run in reverse: no sort, one
//    order on every rank.
//  4 Nodes are coarse: a fused kernel's worth.
//  5 A gradient lives in a slot. GradFor() says whether to write or to add;
//    PassGrad() aliases; a shared buffer is copied before it is added to.
//  6 Parameters are sinks, not slots: nodes write main_grad with NextBeta(),
//  and
//    hold a ParameterUse, by whose end a gradient is known to be complete.
//  7 Save by need: a frozen weight saves no input, a constant input gets no
//    gradient, a frozen tower on constant input records nothing.
//  8 Each node dies after its backward. Debug builds check that nothing wrote
//    over what a node saved.
//  9 A checkpoint is one node that runs its body again on a child tape.
// 10 Between the forward's start and the backward's end no value of a tensor is
//    read on the host: a pass can be captured and replayed.
// 11 First order only: no double backward, no in-place change of a recorded
//    value, no views that share gradients.
#ifndef MIMO_MIMO_AUTOGRAD_TAPE_H_
#define MIMO_MIMO_AUTOGRAD_TAPE_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "mimo/autograd/context.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

using Slot = int32_t;
inline constexpr Slot kNoGrad = -1;

// A value and the slot of its gradient.
struct Var {
  Tensor value;
  Slot slot = kNoGrad;
  bool needs_grad() const { return slot != kNoGrad; }
};

// A tensor that a node keeps for its backward.
class Saved {
 public:
  Saved() = default;
  explicit Saved(Tensor tensor);
  // The tensor; in debug builds its bytes must be those that were saved.
  const Tensor& get() const;
  Tensor Take();  // for a node that writes over it; nothing is kept

 private:
  Tensor tensor_;
  uint64_t digest_ = 0;
};

class BackwardContext;

class Node {
 public:
  virtual ~Node() = default;
  virtual const char* name() const = 0;
  virtual void Backward(BackwardContext& ctx) = 0;

 private:
  friend class Tape;
  const std::string* scope_ = nullptr;  // the ModuleScope it was appended in
};

class Tape {
 public:
  // A value from outside whose gradient is wanted.
  Var Input(Tensor value) { return {std::move(value), NewSlot()}; }
  Slot NewSlot();
  void Append(std::unique_ptr<Node> node) {
    node->scope_ = scope_;
    nodes_.push_back(std::move(node));
  }
  int64_t nodes() const { return static_cast<int64_t>(nodes_.size()); }

  struct Seed {
    Slot slot;
    Tensor grad;  // move it in, or the first addition copies it
  };
  // Runs and frees every node, last first. Seeds of kNoGrad are ignored.
  void Backward(const Context& exec, std::vector<Seed> seeds);
  // After Backward: the gradient of an Input; undefined when none reached it.
  Tensor TakeGrad(Slot slot) { return std::move(grads_.at(slot)); }

 private:
  friend class BackwardContext;
  friend class ModuleScope;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<Tensor> grads_;           // by slot
  const std::string* scope_ = nullptr;  // the innermost ModuleScope's path
};

// What a node's Backward sees.
class BackwardContext {
 public:
  BackwardContext(Tape& tape, const Context& exec) : tape_(tape), exec_(exec) {}

  const Context& exec() const { return exec_; }
  // The gradient of an output, handed over; undefined when none reached it.
  Tensor Take(Slot slot);

  struct Sink {
    Tensor buffer;            // undefined when the gradient is not needed
    bool accumulate = false;  // add to the buffer rather than write it
    void* data() const { return buffer.defined() ? buffer.data() : nullptr; }
  };
  // Where to write the gradient of an input.
  Sink GradFor(Slot slot, const Shape& shape, DType dtype);
  // Gives a gradient that already exists.
  void PassGrad(Slot slot, Tensor grad);

 private:
  Tape& tape_;
  const Context& exec_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_TAPE_H_
