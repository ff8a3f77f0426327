// AdamW: the update of every trainable parameter (kernels/optim/adamw.h has the
// formula), with clipping by the global L2 norm of their gradients.
#ifndef MIMO_MIMO_OPTIM_ADAMW_H_
#define MIMO_MIMO_OPTIM_ADAMW_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mimo/nn/parameter.h"
#include "mimo/optim/optimizer_config.h"
#include "mimo/tensor/allocator.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

class AdamW {
 public:
  // Frozen parameters are left out. The others have one dtype.
  AdamW(const OptimizerConfig& config,
        const std::vector<Parameter*>& parameters, Allocator& allocator);

  // Updates every trainable parameter with its gradient and learning rate `lr`.
  // Weight decay falls on those with two or more dimensions. Returns the
  // gradients' global L2 norm before clipping. If that is not finite nothing
  // changes but skipped().
  double Step(double lr);
  // Counts an update that is not made.
  void Skip() { ++skipped_; }

  int64_t steps() const { return steps_; }      // updates made
  int64_t skipped() const { return skipped_; }  // updates not made
  void Restore(int64_t steps, int64_t skipped);
  // "exp_avg.<parameter>" and "exp_avg_sq.<parameter>", the moments themselves:
  // write into them to restore.
  const std::map<std::string, Tensor>& state() const { return state_; }

 private:
  struct Entry {
    Parameter* parameter;
    Tensor exp_avg, exp_avg_sq;  // the parameter's shape, accumulator dtype
  };
  OptimizerConfig config_;
  std::vector<Entry> entries_;
  std::map<std::string, Tensor> state_;
  int64_t steps_ = 0;
  int64_t skipped_ = 0;
};

}  // namespace mimo

#endif  // MIMO_MIMO_OPTIM_ADAMW_H_
