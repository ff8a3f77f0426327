#include "models/hf/weights.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "mimo/config/json.h"

namespace mimo {
namespace {

absl::StatusOr<std::shared_ptr<const SafeTensors>> OpenShared(
    const std::string& path) {
  MIMO_ASSIGN_OR_RETURN(SafeTensors file, SafeTensors::Open(path));
  return std::make_shared<const SafeTensors>(std::move(file));
}

}  // namespace

void Problems::WantShape(absl::string_view name, const Shape& found,
                         const Shape& wanted) {
  if (found != wanted) {
    Add(name, " is ", ToString(found), ", wanted ", ToString(wanted));
  }
}

absl::Status Problems::status() const {
  if (list_.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where_, ": ", absl::StrJoin(list_, "; ")));
}

Tensor View(const Tensor& parameter, const HfTensor& tensor) {
  return parameter.Rows(tensor.row, tensor.row + tensor.shape[0])
      .Reshape(tensor.shape);
}

absl::Status HfWeights::Add(std::shared_ptr<const SafeTensors> file,
                            const std::string& name) {
  if (IsHfBuffer(name)) return absl::OkStatus();
  const std::string canonical = CanonicalHfName(name);
  const auto [it, added] =
      places.emplace(canonical, Place{std::move(file), name});
  if (added) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(it->second.file->path(), ": ", it->second.name, " and ",
                   name, " are both ", canonical, ", wanted one"));
}

absl::Status HfWeights::Load(const HfTensor& tensor,
                             const Tensor& parameter) const {
  const Place& place = places.at(tensor.name);
  return place.file->LoadInto(place.name, View(parameter, tensor));
}

absl::Status HfWeights::AddShards(const std::string& folder) {
  const std::string index_path = absl::StrCat(folder, "/", kHfIndex);
  MIMO_ASSIGN_OR_RETURN(const ConfigNode index, LoadJson(index_path));
  const ConfigNode map = index["weight_map"];
  if (map.kind != ConfigNode::Kind::kMap) {
    return map.Error(map.Describe() + ", wanted tensors and their files");
  }
  Problems problems(index_path);
  std::map<std::string, std::shared_ptr<const SafeTensors>> shards;
  for (const ConfigNode& entry : map.children) {
    if (!entry.quoted || entry.text.find('/') != std::string::npos) {
      return entry.Error(entry.Describe() + ", wanted a file's name");
    }
    auto [it, added] = shards.emplace(entry.text, nullptr);
    if (added) {
      auto shard = OpenShared(absl::StrCat(folder, "/", entry.text));
      if (absl::IsNotFound(shard.status())) {
        problems.Add("no file ", entry.text);
        continue;
      }
      MIMO_RETURN_IF_ERROR(shard.status());
      it->second = *shard;
    }
    if (it->second == nullptr) continue;  // told already
    if (it->second->Find(entry.key) == nullptr) {
      problems.Add("no ", entry.key, " in ", entry.text);
      continue;
    }
    MIMO_RETURN_IF_ERROR(Add(it->second, entry.key));
  }
  return problems.status();
}

absl::StatusOr<HfWeights> HfWeights::Open(const std::string& folder) {
  HfWeights weights;
  namespace fs = std::filesystem;
  std::error_code error;
  const std::string single = absl::StrCat(folder, "/", kHfSingle);
  if (!fs::exists(single, error)) {
    if (fs::exists(absl::StrCat(folder, "/", kHfIndex), error)) {
      MIMO_RETURN_IF_ERROR(weights.AddShards(folder));
      return weights;
    }
    return absl::NotFoundError(absl::StrCat(folder, ": no weights, wanted ",
                                            kHfSingle, " or ", kHfIndex));
  }
  MIMO_ASSIGN_OR_RETURN(const auto file, OpenShared(single));
  for (const auto& [name, info] : file->tensors()) {
    MIMO_RETURN_IF_ERROR(weights.Add(file, name));
  }
  return weights;
}

}  // namespace mimo
