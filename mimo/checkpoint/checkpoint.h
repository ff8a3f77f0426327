// Training checkpoints: a folder of iterations, each a folder of its own.
//
// clang-format off
//   save/latest                            name of the newest: "iter_0000050"
//   save/iter_0000050/model.safetensors    parameters, by their names
//                     optimizer.safetensors  exp_avg.<name>, exp_avg_sq.<name>,
//                                            master.<name> of bfloat16 ones
//                     state.json             TrainState
//                     config.yaml, ...       files of the caller's
// clang-format on
//
// Saving is atomic: an iteration is written under another name, synced to disk,
// renamed, and only then named in `latest`. Whenever a save is stopped, by kill
// -9 or a full disk, what was there before loads.
#ifndef MIMO_MIMO_CHECKPOINT_CHECKPOINT_H_
#define MIMO_MIMO_CHECKPOINT_CHECKPOINT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mimo/nn/parameter.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

using TensorMap = std::map<std::string, Tensor>;

// Where a run stands, apart from its tensors.
struct TrainState {
  int64_t iteration = 0;  // updates tried
  int64_t consumed_samples = 0;
  int64_t optimizer_steps = 0;     // updates made
  int64_t skipped_iterations = 0;  // updates not made
  int64_t seed = 0;

  bool operator==(const TrainState&) const = default;
};

struct Checkpoint {
  TrainState state;
  TensorMap model;
  TensorMap optimizer;
  std::map<std::string, std::string> metadata;  // kept in model.safetensors
  std::map<std::string, std::string> files;     // name in the folder -> bytes
};

// {name: data} of every parameter, sharing the storage.
TensorMap DataOf(const std::vector<Parameter*>& parameters);

// Writes folder/iter_<iteration>; one that is there is replaced. keep > 0: the
// newest `keep` up to this one stay, older ones are removed. ResourceExhausted:
// disk full; InvalidArgument, PermissionDenied: the folder cannot be written.
absl::Status SaveCheckpoint(const std::string& folder,
                            const Checkpoint& checkpoint, int64_t keep = 0);

// The iteration's folder that `path` means: `path` itself if it is one, else
// the one that its `latest` names. NotFound when `path` has neither.
absl::StatusOr<std::string> FindCheckpoint(const std::string& path);

// state.json of an iteration's folder.
absl::StatusOr<TrainState> LoadTrainState(const std::string& folder);

// Fills all of `tensors` from the safetensors `file`, converting dtypes. One
// error lists every tensor that is missing, of another shape or not wanted;
// then nothing was filled.
absl::Status LoadTensors(const std::string& file, const TensorMap& tensors);

}  // namespace mimo

#endif  // MIMO_MIMO_CHECKPOINT_CHECKPOINT_H_
