// Parameter: a named weight and its gradient's sink.
//
// Backward kernels write main_grad themselves: `=` (beta 0) on the first write
// of a step, `+=` (beta 1) after, so no pass clears it (docs/adr/0001, rule 6).
#ifndef MIMO_MIMO_NN_PARAMETER_H_
#define MIMO_MIMO_NN_PARAMETER_H_

#include <cstddef>
#include <string>
#include <vector>

#include "mimo/nn/quantization.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

// A range of a dimension that a rank has a parameter of.
struct Shard {
  int64_t begin, size;
  // How many tp ranks have it, side by side in their group, and which of them
  // this one is. What counts an element once counts those of copy 0.
  int copies = 1, copy = 0;
};

// The shards of dimension `dim`, one behind another, that a rank's part is made
// of: several where a matrix has blocks that are split each for itself.
struct Sharding {
  int dim = 0;
  std::vector<Shard> shards;
};

// A matrix in 8-bit floats (kernels/quantise).
struct Quantised {
  Tensor codes;
  Tensor scale;  // [2] float32
};

struct Parameter;

// Is told when a step begins to use a parameter and when it ends to.
class ParameterObserver {
 public:
  virtual ~ParameterObserver() = default;
  // Work that reads `data`, of which an update may be on its way, is about to
  // be enqueued.
  virtual void BeforeRead(Parameter& parameter) = 0;
  // A recorded pass holds no use of it any more: what is to be written into its
  // main_grad has been enqueued.
  virtual void LastUseGone(Parameter& parameter) = 0;
};

struct Parameter {
  std::string
      name;     // full path, e.g. "language_model.layers.0.mlp.down.weight"
  Tensor data;  // this rank's part
  Tensor main_grad;  // accumulator dtype; undefined when frozen
  Shape whole;       // the shape of all tp ranks' parts together
  Sharding sharding;
  bool frozen = false;
  // The copies of a shard have gradients of different tokens or heads each:
  // only their sum is the shard's (SumGradsOverTp).
  bool reduce_grad_over_tp = false;
  Quantization quantization = Quantization::kNone;  // of products with it
  // With fp8: kept from the first use of a frozen weight, which changes no
  // more, and whose `data` goes to the host then. codes [F, H], of `transposed`
  // [H, F].
  Quantised quantised, transposed;
  // How many pipeline stages have it (a tied embedding: the first and the last)
  // and which of them this one is. Their gradients' sum is its gradient. What
  // counts an element once counts those of copy 0.
  int stage_copies = 1, stage_copy = 0;
  bool written = false;  // main_grad holds a gradient of this step
  int uses = 0;          // ParameterUse that name it
  ParameterObserver* observer = nullptr;

  // `data`, for a forward: enqueued work sees the last update. What a backward
  // reads its forward has read.
  const Tensor& Values() {
    if (observer != nullptr) observer->BeforeRead(*this);
    return data;
  }
  void* main_grad_or_null() const {
    return frozen ? nullptr : main_grad.data();
  }
  // beta of the next write into main_grad. Call once a write.
  float NextBeta() {
    const float beta = written ? 1.0f : 0.0f;
    written = true;
    return beta;
  }
  // Ends a step: the next write starts from zero.
  void ForgetGrad() { written = false; }
  // The step's gradient; zero when nothing wrote it.
  const Tensor& Grad() {
    if (!written) main_grad.Zero();
    written = true;
    return main_grad;
  }
};

// A node's hold on a parameter that its backward writes. Nodes die after their
// backward (rule 8), so tied weights and any number of recorded passes count
// right. Null for no parameter.
class ParameterUse {
 public:
  ParameterUse() = default;
  ParameterUse(const ParameterUse&) = delete;
  ~ParameterUse() {
    if (parameter_ == nullptr || --parameter_->uses > 0) return;
    if (parameter_->observer != nullptr)
      parameter_->observer->LastUseGone(*parameter_);
  }
  // Once.
  void operator=(Parameter* parameter) {
    parameter_ = parameter;
    if (parameter != nullptr) ++parameter->uses;
  }
  Parameter* operator->() const { return parameter_; }
  Parameter& operator*() const { return *parameter_; }
  bool operator==(std::nullptr_t) const { return parameter_ == nullptr; }

 private:
  Parameter* parameter_ = nullptr;
};

}  // namespace mimo

#endif  // MIMO_MIMO_NN_PARAMETER_H_
