// Parameter: a named weight and its gradient's sink.
//
// Backward kernels write main_grad themselves: `=` (beta 0) on the first write
// of a step, `+=` (beta 1) after, so no pass clears it (docs/adr/0001, rule 6).
#ifndef MIMO_MIMO_NN_PARAMETER_H_
#define MIMO_MIMO_NN_PARAMETER_H_

#include <cstdint>
#include <string>

#include "mimo/tensor/tensor.h"

namespace mimo {

struct Parameter {
  std::string
      name;  // full path, e.g. "language_model.layers.0.mlp.down.weight"
  Tensor data;
  Tensor main_grad;  // accumulator dtype; undefined when frozen
  bool frozen = false;
  bool written = false;  // main_grad holds a gradient of this step

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

}  // namespace mimo

#endif  // MIMO_MIMO_NN_PARAMETER_H_
