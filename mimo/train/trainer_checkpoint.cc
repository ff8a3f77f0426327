// How a trainer takes up a run and saves it.
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/atomic_file.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/train/trainer.h"

namespace mimo {
namespace {

bool SameFolder(const std::string& a, const std::string& b) {
  std::error_code error;
  const std::filesystem::path x = a, y = b;
  return std::filesystem::weakly_canonical(x / "", error) ==
         std::filesystem::weakly_canonical(y / "", error);
}

// Makes the folder; finds out before the first iteration that it cannot be
// written.
absl::Status PrepareFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return FileError(path, "make the folder", error.value());
  if (access(path.c_str(), W_OK) != 0) {
    return FileError(path, "write into it", errno);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Trainer::Resume() {
  const CheckpointConfig& config = options_.checkpoint;
  if (config.save) {
    MIMO_RETURN_IF_ERROR(PrepareFolder(*config.save));
  }
  if (!config.load) return absl::OkStatus();
  const bool own = config.save && SameFolder(*config.load, *config.save);
  const absl::StatusOr<std::string> folder = FindCheckpoint(*config.load);
  if (absl::IsNotFound(folder.status()) && own) return absl::OkStatus();
  MIMO_RETURN_IF_ERROR(folder.status());
  MIMO_ASSIGN_OR_RETURN(const TrainState state, LoadTrainState(*folder));
  const CheckpointRanks ranks = {options_.world, ctx_.allocator};
  MIMO_RETURN_IF_ERROR(
      LoadSlices(*folder, "model", SlicesOf(stage_.Parameters()), ranks));
  optimizer_.SetMasters();
  // Converted weights have no run to go on with.
  if (state.iteration == 0) return absl::OkStatus();
  if (state.seed != options_.train.seed) {
    return absl::InvalidArgumentError(
        absl::StrCat("train.seed: ", options_.train.seed, ", wanted ",
                     state.seed, " as in ", *folder));
  }
  MIMO_RETURN_IF_ERROR(
      LoadSlices(*folder, "optimizer", optimizer_.State(), ranks));
  optimizer_.Restore(state.optimizer_steps, state.skipped_iterations);
  iteration_ = state.iteration;
  consumed_samples_ = state.consumed_samples;
  if (own) saved_iteration_ = iteration_;
  progress_.Say(
      absl::StrCat("resumed from ", *folder,
                   iteration_ < options_.train.train_iters
                       ? ""
                       : ": train_iters are done, nothing is left to do"));
  return source_.Seek(consumed_samples_);
}

SliceMap Trainer::ModelSlices() {
  SliceMap slices;
  const auto add = [&](const ParameterShard& shard) {
    const Tensor& data = shard.parameter->data;
    slices[shard.parameter->name] = SliceOf(
        shard, data.Reshape({data.numel()}).Rows(shard.begin, shard.end));
  };
  const std::vector<DataParallelModule>& modules = parallel_.modules();
  for (size_t m = 0; m < modules.size(); ++m) {
    for (const ParameterShard& shard : parallel_.shards(m)) add(shard);
    const Communicator* group = modules[m].group;
    if (group != nullptr && group->rank() > 0) continue;
    for (Parameter* p : modules[m].parameters)
      if (p->frozen) add({p, 0, p->data.numel()});
  }
  return slices;
}

absl::Status Trainer::Save() {
  if (!options_.checkpoint.save || saved_iteration_ == iteration_) {
    return absl::OkStatus();
  }
  const Checkpoint checkpoint = {
      .state = {.iteration = iteration_,
                .consumed_samples = consumed_samples_,
                .optimizer_steps = optimizer_.steps(),
                .skipped_iterations = optimizer_.skipped(),
                .seed = options_.train.seed},
      .model = ModelSlices(),
      .optimizer = optimizer_.State(),
      .metadata = options_.checkpoint_metadata,
      .files = options_.checkpoint_files};
  MIMO_RETURN_IF_ERROR(SaveCheckpoint(*options_.checkpoint.save, checkpoint,
                                      options_.checkpoint.keep,
                                      {options_.world, ctx_.allocator}));
  saved_iteration_ = iteration_;
  return absl::OkStatus();
}

}  // namespace mimo
