// The weights of a Hugging Face folder, by canonical name (names.h), and the
// error that lists all that does not fit.
#ifndef MIMO_MODELS_HF_WEIGHTS_H_
#define MIMO_MODELS_HF_WEIGHTS_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "mimo/checkpoint/safetensors.h"
#include "mimo/tensor/tensor.h"
#include "models/hf/names.h"

namespace mimo {

inline constexpr char kHfSingle[] = "model.safetensors";
inline constexpr char kHfIndex[] = "model.safetensors.index.json";

// One error for all that does not fit.
class Problems {
 public:
  explicit Problems(std::string where) : where_(std::move(where)) {}
  template <typename... Words>
  void Add(const Words&... words) {
    list_.push_back(absl::StrCat(words...));
  }
  void WantShape(absl::string_view name, const Shape& found,
                 const Shape& wanted);
  absl::Status status() const;  // "<where>: <one>; <the next>"

 private:
  std::string where_;
  std::vector<std::string> list_;
};

// The rows of our parameter that `tensor` is, in its shape.
Tensor View(const Tensor& parameter, const HfTensor& tensor);

struct HfWeights {
  struct Place {
    std::shared_ptr<const SafeTensors> file;
    std::string name;  // in the file
    const SafeTensorInfo& info() const { return *file->Find(name); }
  };
  std::map<std::string, Place> places;  // buffers left out

  // Opens model.safetensors, or the shards of its index. Errors: neither is
  // there; shards that are not; tensors that their shard lacks; two spellings
  // of one tensor.
  static absl::StatusOr<HfWeights> Open(const std::string& folder);

  // Fills the rows of `parameter` that `tensor` is. It must be in `places`.
  absl::Status Load(const HfTensor& tensor, const Tensor& parameter) const;

 private:
  absl::Status Add(std::shared_ptr<const SafeTensors> file,
                   const std::string& name);
  absl::Status AddShards(const std::string& folder);
};

}  // namespace mimo

#endif  // MIMO_MODELS_HF_WEIGHTS_H_
