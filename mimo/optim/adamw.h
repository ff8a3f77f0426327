// AdamW: the update of every trainable parameter (kernels/optim/adamw.h has the
// formula), with clipping by the global L2 norm of their gradients.
//
// A step is only enqueued: norm, clip factor and counters live in the device's
// memory, and the host reads them when it is asked for them.
#ifndef MIMO_MIMO_OPTIM_ADAMW_H_
#define MIMO_MIMO_OPTIM_ADAMW_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/optim/tensor_list.h"
#include "mimo/nn/parameter.h"
#include "mimo/optim/optimizer_config.h"
#include "mimo/tensor/allocator.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

class AdamW {
 public:
  // Frozen parameters are left out. The others have one dtype. All work is
  // enqueued on the allocator's stream.
  AdamW(const OptimizerConfig& config,
        const std::vector<Parameter*>& parameters, Allocator& allocator);

  // Updates every trainable parameter with its gradient and learning rate `lr`.
  // Weight decay falls on those with two or more dimensions. If the gradients'
  // norm is not finite nothing changes but skipped().
  void Step(double lr);
  // Its two halves: a CUDA graph of a step holds the second.
  void SetLearningRate(double lr);
  void Update();
  // Counts an update that is not made; norm() is NaN.
  void Skip();

  // The gradients' global L2 norm before clipping, of the last step. This and
  // the next two wait for the stream.
  double norm() const { return Control().norm; }
  int64_t steps() const { return Control().steps; }      // updates made
  int64_t skipped() const { return Control().skipped; }  // updates not made
  void Restore(int64_t steps, int64_t skipped);
  // "exp_avg.<parameter>" and "exp_avg_sq.<parameter>", the moments themselves,
  // and "master.<parameter>" of a bfloat16 parameter, its value in float32:
  // write into them to restore.
  const std::map<std::string, Tensor>& state() const { return state_; }
  // Takes the masters from the parameters again, after these were written.
  void SetMasters();

 private:
  kernels::AdamWControl Control() const;
  void SetControl(const kernels::AdamWControl& value);
  kernels::AdamWControl* control() const {
    return static_cast<kernels::AdamWControl*>(control_.data());
  }

  OptimizerConfig config_;
  Stream stream_;
  std::vector<Parameter*> parameters_;  // the trainable
  std::map<std::string, Tensor> state_;
  std::optional<kernels::TensorList> tensors_;
  Tensor control_;  // an AdamWControl
};

}  // namespace mimo

#endif  // MIMO_MIMO_OPTIM_ADAMW_H_
