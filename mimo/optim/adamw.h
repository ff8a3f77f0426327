// AdamW: the update of every trainable parameter (kernels/optim/adamw.h has the
// formula), with clipping by the global L2 norm of their gradients.
//
// A rank updates the shards that it is given and has their moments alone: whole
// parameters, or its part of each (mimo/parallel). The norm is of all ranks'
// shards, so all of them clip alike, and skip alike when it is not finite.
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

#include "comm/base/communicator.h"
#include "kernels/base/dtype.h"
#include "kernels/optim/tensor_list.h"
#include "mimo/nn/parameter.h"
#include "mimo/nn/tensor_slice.h"
#include "mimo/optim/optimizer_config.h"
#include "mimo/tensor/allocator.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

// Shards that share their settings.
struct ParamGroup {
  std::vector<ParameterShard> shards;
  double lr_mult = 1, wd_mult = 1;
};

class AdamW {
 public:
  // The trainable parameters have one dtype. `world`: the ranks whose shards
  // together are the model, each element on one of them; null: this rank alone.
  // All work is enqueued on the allocator's stream.
  AdamW(const OptimizerConfig& config, const std::vector<ParamGroup>& groups,
        Communicator* world, Allocator& allocator);
  // All of `parameters`, frozen ones left out, on one rank.
  AdamW(const OptimizerConfig& config,
        const std::vector<Parameter*>& parameters, Allocator& allocator);

  // Updates every shard with its gradient and learning rate `lr`, times its
  // group's lr_mult. Weight decay falls on parameters with two or more
  // dimensions. If the gradients' norm or `loss` is not finite nothing changes
  // but skipped(). loss: [1], of all ranks, on the device; null: none.
  void Step(double lr, const double* loss = nullptr);
  // Enqueues a copy of the numbers of the steps so far.
  void CopyControl(kernels::AdamWControl* to) const;

  // The gradients' global L2 norm before clipping, of the last step; NaN if its
  // loss was not finite. This and the next two wait for the stream.
  double norm() const { return Control().norm; }
  int64_t steps() const { return Control().steps; }      // updates made
  int64_t skipped() const { return Control().skipped; }  // updates not made
  // "exp_avg.<parameter>" and "exp_avg_sq.<parameter>", the moments themselves,
  // and "master.<parameter>" of a bfloat16 parameter, its value in float32, of
  // this rank's shards. Masters are put together in the gradients' memory, the
  // gradients being forgotten: they are there until the next one is written.
  const SliceMap& State();
  // Goes on from what was written into State()'s tensors.
  void Restore(int64_t steps, int64_t skipped);
  // Masters are what the parameters are, after these were written.
  void SetMasters();

 private:
  kernels::AdamWControl Control() const;
  void SetControl(const kernels::AdamWControl& value);
  kernels::AdamWControl* control() const {
    return static_cast<kernels::AdamWControl*>(control_.data());
  }

  OptimizerConfig config_;
  DType exp_avg_dtype_;
  Communicator* world_;
  Stream stream_;
  std::vector<Parameter*> parameters_;  // of the shards
  std::vector<Tensor> remainders_;      // of bfloat16 shards, 2 bytes each
  SliceMap state_;
  std::optional<kernels::TensorList> tensors_;
  Tensor control_;  // an AdamWControl
};

}  // namespace mimo

#endif  // MIMO_MIMO_OPTIM_ADAMW_H_
