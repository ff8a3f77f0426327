// DistributedDataParallel: what the replicas of a rank's modules do together in
// a step, and the sharding of the optimizer over them (ZeRO stage 1).
//
//   backward          main_grad   this replica's sum over its micro-batches
//   FinishGradSync    shard r of each bucket on replica r: the sum of all
//   AdamW             updates shards(), nobody else has their moments
//   GatherParameters  every replica gets every new weight, while the next
//                     forward runs up to it
//
// Nothing is scaled: a trainer seeds every backward with 1 / (labelled tokens
// of the global batch), so that the sum over replicas is the gradient of the
// mean over all of them, whatever the modules' DP sizes.
//
// A module's trainable parameters lie, last first as their gradients come, in
// buckets: flat buffers of which main_grad and data become views, cut into one
// shard a replica. In its module's last backward a bucket is reduced as soon
// as no recorded node uses its parameters, beside the rest of the backward on a
// GPU; the module's go in one order. A replica whose micro-batch has no image
// reduces them at the end of that backward, before anything else that its ranks
// do together. What tp ranks have copies of is summed over these first.
//
// A module of one replica has no buckets; its shards are whole parameters.
//
// A parameter that two pipeline stages have (Parameter::stage_copies) has a
// bucket of its own, so that both cut it alike; behind all reductions its shard
// is summed over the stages, which then update it alike.
//
// Source: Rajbhandari et al. 2019, arXiv:1910.02054, sec. 5.1 (P_os); Li et al.
// 2020, arXiv:2006.15704, sec. 3.2 (buckets and their order).
#ifndef MIMO_MIMO_PARALLEL_DISTRIBUTED_DATA_PARALLEL_H_
#define MIMO_MIMO_PARALLEL_DISTRIBUTED_DATA_PARALLEL_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "comm/base/communicator.h"
#include "kernels/base/device.h"
#include "mimo/autograd/context.h"
#include "mimo/nn/parameter.h"
#include "mimo/nn/tensor_slice.h"
#include "mimo/tensor/allocator.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

// A module as a rank has it: a language model, or a modality's encoders and
// projections.
struct DataParallelModule {
  std::string name;                    // "language", "images"
  std::vector<Parameter*> parameters;  // frozen ones too
  // The ranks with the same parameters: its dp-cp group. Null: this one alone.
  Communicator* group = nullptr;
  // Its tp group, for the gradients of copies (SumGradsOverTp). Null: one rank.
  Communicator* tp = nullptr;
  // Its embd group: the stages that have a tied embedding. Null: not this one.
  Communicator* embd = nullptr;
};

struct DataParallelOptions {
  int64_t bucket_size = 40'000'000;  // elements, or one parameter if larger
  // Reduce during the last backward. False where that is a captured pass.
  bool overlap_grad_reduce = true;
};

class DistributedDataParallel final : public ParameterObserver {
 public:
  // Parameters, groups and allocator outlive it. Modules that share ranks come
  // in the same order on all of them. All work is enqueued on the allocator's
  // stream or waits for it.
  DistributedDataParallel(const std::vector<DataParallelModule>& modules,
                          Allocator& allocator,
                          const DataParallelOptions& options = {});
  ~DistributedDataParallel() override;
  DistributedDataParallel(const DistributedDataParallel&) = delete;

  // Measures from now on when the ranks meet; null: not any more.
  void SetProfiler(Profiler* profiler) { comm_.profiler = profiler; }

  // Around the last backward of a module in a step: at one place in the
  // programs of all ranks of its group, which wait for each other in between.
  void BeginLastBackward(const std::string& module);
  void EndLastBackward();
  // Behind all of them: reduces what is left. Gradients of shards() are
  // complete then, all others are not to be used.
  void FinishGradSync();
  // After the update of shards(). Parameter::Values() waits for the parameter's
  // bucket; those that a forward reads first come first.
  void GatherParameters();

  const std::vector<DataParallelModule>& modules() const { return modules_; }
  // What this rank updates of modules()[module].
  const std::vector<ParameterShard>& shards(int module) const {
    return shards_[module];
  }

  // OK, or why a module's group failed.
  absl::Status Health() const;
  // An error, of all ranks of the group, that names the first parameter that is
  // not bitwise the same on all replicas, or tp ranks or stages that have
  // copies of it. Waits for the stream.
  absl::Status CheckReplicas() const;

  void BeforeRead(Parameter& parameter) override;
  void LastUseGone(Parameter& parameter) override;

 private:
  struct Bucket {
    std::string module;
    Communicator *group, *tp;
    std::vector<Parameter*> parameters;
    int64_t shard;          // elements
    Tensor grads, weights;  // [shard * replicas] accumulator dtype, dtype
    absl::flat_hash_set<const Parameter*> complete;  // in the last backward
    bool reduced = false;                            // in this step
    std::optional<Event> gathered;  // until the compute stream waits for it
  };

  // The next of a module's buckets.
  void AddBucket(const DataParallelModule& module,
                 std::vector<Parameter*> parameters,
                 std::vector<ParameterShard>& shards);
  void Reduce(Bucket& bucket);
  void SumOverStages();

  Allocator& allocator_;
  const DataParallelOptions options_;
  Context comm_;  // on a stream of its own on a GPU, before the backward's
                  // kernels
  std::vector<DataParallelModule> modules_;
  std::vector<std::vector<ParameterShard>> shards_;  // by module
  std::vector<Bucket> buckets_;  // by module, as they are reduced
  absl::flat_hash_map<const Parameter*, size_t> bucket_of_;
  // In a last backward: the module's that are not reduced yet.
  absl::Span<Bucket> in_turn_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_PARALLEL_DISTRIBUTED_DATA_PARALLEL_H_
