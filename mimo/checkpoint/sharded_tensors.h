// Tensors that the ranks of a run have saved in slices, in one folder.
//
//   KIND.safetensors                   one rank: every tensor, whole
//   KIND-00002-of-00008.safetensors    rank 1 of 8: its slices, flat, by name
//   manifest.json                      of several ranks: each tensor's shape
//                                      and slices, in the form
//     {KIND: {NAME: {"shape": [6, 4], "slices": [{"file": "...", "dim": 0,
//             "shards": [[2, 4]], "begin": 0}, ...]}}}
//   as TensorSlice has them; slices may overlap. Files have checksums
//   (safetensors.h).
//
// What is read may be cut in any other way: each slice takes its elements from
// the files that hold them.
#ifndef MIMO_MIMO_CHECKPOINT_SHARDED_TENSORS_H_
#define MIMO_MIMO_CHECKPOINT_SHARDED_TENSORS_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mimo/checkpoint/safetensors.h"
#include "mimo/nn/tensor_slice.h"

namespace mimo {

inline constexpr char kManifestFile[] = "manifest.json";

using TensorMap = std::map<std::string, Tensor>;

// Each of them whole.
SliceMap Whole(const TensorMap& tensors);

class ShardedTensors {
 public:
  // KIND is "model" or "optimizer". Errors name the file.
  static absl::StatusOr<ShardedTensors> Open(const std::string& folder,
                                             const std::string& kind);

  // The file that says what there is.
  const std::string& path() const { return path_; }
  // By name: the shape of the whole.
  const std::map<std::string, Shape>& shapes() const { return shapes_; }
  const std::map<std::string, std::string>& metadata() const {
    return metadata_;
  }
  // A whole one, in the dtype it was saved in.
  absl::StatusOr<Tensor> Load(const std::string& name,
                              Allocator& allocator) const;
  // Fills `out`, converting to its dtype. Errors: no such tensor, elements that
  // no file has, what SafeTensors::LoadInto says.
  absl::Status LoadInto(const std::string& name, const TensorSlice& out) const;

 private:
  struct Part {
    SafeTensors file;
    Sharding sharding;
    int64_t begin;
  };

  absl::Status ReadManifest(const std::string& folder, const std::string& kind);

  std::string path_;
  std::map<std::string, Shape> shapes_;
  std::map<std::string, std::vector<Part>> parts_;
  std::map<std::string, std::string> metadata_;
};

// Writes the slices of rank `rank` of `size`, without copies; what the manifest
// says of them is added to `manifest`, JSON text of the form above ("" is none
// yet).
absl::Status WriteSlices(const std::string& folder, const std::string& kind,
                         const SliceMap& slices,
                         const std::map<std::string, std::string>& metadata,
                         int rank, int size, std::string& manifest);
// One manifest of those of all ranks.
std::string MergeManifests(const std::vector<std::string>& manifests);

}  // namespace mimo

#endif  // MIMO_MIMO_CHECKPOINT_SHARDED_TENSORS_H_
