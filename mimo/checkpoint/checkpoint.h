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
// Several ranks save their slices into one file each, beside a manifest.json
// (sharded_tensors.h); any number of ranks loads them.
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
#include "comm/base/communicator.h"
#include "mimo/checkpoint/sharded_tensors.h"
#include "mimo/nn/parameter.h"
#include "mimo/nn/tensor_slice.h"
#include "mimo/tensor/allocator.h"

namespace mimo {

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
  SliceMap model;  // this rank's; all ranks' together are everything
  SliceMap optimizer;
  std::map<std::string, std::string> metadata;  // kept in model.safetensors
  std::map<std::string, std::string> files;     // name in the folder -> bytes
};

// Every parameter as this rank has it, by its name, sharing the storage.
SliceMap SlicesOf(const std::vector<Parameter*>& parameters);

// The ranks that save or load together, and memory for what they tell each
// other.
struct CheckpointRanks {
  Communicator* world = nullptr;  // null: one rank
  Allocator* allocator = nullptr;
};

// Writes folder/iter_<iteration>; one that is there is replaced. keep > 0: the
// newest `keep` up to this one stay, older ones are removed. ResourceExhausted:
// disk full; InvalidArgument, PermissionDenied: the folder cannot be written.
// Called by all ranks, whose folder is the same one; rank 0's state, files and
// keep count. When one fails all do, and what was there before stays.
absl::Status SaveCheckpoint(const std::string& folder,
                            const Checkpoint& checkpoint, int64_t keep = 0,
                            const CheckpointRanks& ranks = {});

// The iteration's folder that `path` means: `path` itself if it is one, else
// the one that its `latest` names. NotFound when `path` has neither.
absl::StatusOr<std::string> FindCheckpoint(const std::string& path);

// state.json of an iteration's folder.
absl::StatusOr<TrainState> LoadTrainState(const std::string& folder);

// Fills `slices` from the tensors of KIND ("model", "optimizer") in an
// iteration's folder, converting dtypes. One error lists every tensor that is
// missing, of another shape, or wanted by no rank; then nothing was filled.
// Called by all ranks, each with its slices; when one fails all do.
absl::Status LoadSlices(const std::string& folder, const std::string& kind,
                        const SliceMap& slices,
                        const CheckpointRanks& ranks = {});

}  // namespace mimo

#endif  // MIMO_MIMO_CHECKPOINT_CHECKPOINT_H_
