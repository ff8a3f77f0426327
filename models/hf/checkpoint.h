// Hugging Face LLaVA checkpoints in and out: a folder with config.json and
// model.safetensors, or shards with model.safetensors.index.json.
#ifndef MIMO_MODELS_HF_CHECKPOINT_H_
#define MIMO_MODELS_HF_CHECKPOINT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/dtype.h"
#include "mimo/nn/parameter.h"
#include "mimo/tensor/tensor.h"
#include "models/llava/config.h"

namespace mimo {

// How a folder spells its tensors: canonical name -> name and dtype on disk. A
// training checkpoint keeps it as text, so that an export is as the import was.
struct HfLayout {
  struct Entry {
    std::string name;
    DType dtype;
    bool operator==(const Entry&) const = default;
  };
  std::map<std::string, Entry> entries;

  bool operator==(const HfLayout&) const = default;
  std::string ToText() const;
  static absl::StatusOr<HfLayout> FromText(absl::string_view text);
};
// Its key in a safetensors file's metadata.
inline constexpr char kHfLayoutKey[] = "hf_layout";

absl::StatusOr<HfLayout> ReadHfLayout(const std::string& folder);

// Fills `parameters`, or this rank's parts, converting dtypes. One error lists
// every tensor of theirs that is missing, of another shape, or unknown.
absl::Status LoadHfParameters(const std::string& folder,
                              const std::vector<Parameter*>& parameters);

// All parameters under our names, in the file's dtype: what a conversion needs.
absl::StatusOr<std::map<std::string, Tensor>> LoadHfTensors(
    const std::string& folder, Allocator& allocator);

struct HfSaveOptions {
  HfLayout layout;             // what it leaves out gets its canonical name
  std::optional<DType> dtype;  // of all tensors; else the layout's, else theirs
  int64_t max_shard_bytes = int64_t{5} << 30;
  std::string config_json;  // config.json's text; else made from the config
};

// Writes `tensors` (our names, all of the model's) as a Hugging Face folder.
// Files get their names only when all are written.
absl::Status SaveHfCheckpoint(const std::string& folder,
                              const LlavaConfig& config,
                              const std::map<std::string, Tensor>& tensors,
                              const HfSaveOptions& options = {});

// The gradient of each of their tensors, by its name on disk, as views of
// main_grad; zeros for a parameter that nothing wrote or that is frozen. An
// error names a parameter that a Hugging Face LLaVA does not have.
absl::StatusOr<std::map<std::string, Tensor>> HfGradients(
    const std::vector<Parameter*>& parameters, const LlavaConfig& config,
    Allocator& allocator, const HfLayout& layout = {});

}  // namespace mimo

#endif  // MIMO_MODELS_HF_CHECKPOINT_H_
