#include "models/hf/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/atomic_file.h"
#include "mimo/checkpoint/safetensors.h"
#include "mimo/config/json.h"
#include "mimo/nn/tensor_slice.h"
#include "models/hf/llava_config.h"
#include "models/hf/names.h"
#include "models/hf/weights.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;

// Fills this rank's part of `parameter`.
absl::Status LoadPart(const HfParameter& row, const HfWeights& weights,
                      const Parameter& parameter) {
  const Tensor& part = parameter.data;
  Allocator host;
  Tensor whole = part;
  const bool all = part.shape() == parameter.whole;
  if (!all) whole = Tensor(host, parameter.whole, part.dtype());
  for (const HfTensor& tensor : row.tensors) {
    MIMO_RETURN_IF_ERROR(weights.Load(tensor, whole));
  }
  if (all) return absl::OkStatus();
  const Tensor from = whole.Reshape({whole.numel()});
  Tensor to = part.Reshape({part.numel()});
  for (const SliceRun& run :
       RunsOf(parameter.whole, parameter.sharding, 0, part.numel())) {
    to.Rows(run.from, run.from + run.size)
        .CopyFrom(from.Rows(run.at, run.at + run.size));
  }
  return absl::OkStatus();
}

// Adds what is missing or of another shape among the tensors of `parameter`.
void CheckTensors(const HfParameter& parameter, const HfWeights& weights,
                  Problems& problems) {
  for (const HfTensor& tensor : parameter.tensors) {
    const auto place = weights.places.find(tensor.name);
    if (place == weights.places.end()) {
      problems.Add(tensor.name, " is missing");
    } else {
      problems.WantShape(place->second.name, place->second.info().shape,
                         tensor.shape);
    }
  }
}

void CheckUnknown(const std::vector<HfParameter>& table, bool tied,
                  const HfWeights& weights, Problems& problems) {
  std::set<std::string> known;
  if (tied) known.insert(kHfHead);
  for (const HfParameter& parameter : table) {
    for (const HfTensor& tensor : parameter.tensors) known.insert(tensor.name);
  }
  for (const auto& [canonical, place] : weights.places) {
    if (!known.contains(canonical)) problems.Add(place.name, " is not wanted");
  }
}

std::map<std::string, HfParameter> ByName(std::vector<HfParameter> table) {
  std::map<std::string, HfParameter> by_name;
  for (HfParameter& row : table) {
    const std::string name = row.name;
    by_name.emplace(name, std::move(row));
  }
  return by_name;
}

std::string NameOnDisk(const HfLayout& layout, const std::string& canonical) {
  const auto it = layout.entries.find(canonical);
  return it == layout.entries.end() ? canonical : it->second.name;
}

// Writes the entries into `folder`, in one file or in several with an index.
absl::Status WriteWeights(const std::string& folder,
                          std::vector<SafeTensorToWrite> entries,
                          int64_t max_shard_bytes) {
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};
  std::vector<std::vector<SafeTensorToWrite>> shards(1);
  int64_t total = 0, bytes = 0;
  for (SafeTensorToWrite& entry : entries) {
    const int64_t more = entry.tensor.numel() * SizeOf(entry.dtype);
    if (bytes + more > max_shard_bytes && !shards.back().empty()) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += more;
    total += more;
    shards.back().push_back(std::move(entry));
  }
  if (shards.size() == 1) {
    return WriteSafeTensors(absl::StrCat(folder, "/", kHfSingle),
                            std::move(shards[0]), metadata);
  }
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = total;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
    for (const auto& entry : shards[i]) index["weight_map"][entry.name] = name;
    MIMO_RETURN_IF_ERROR(WriteSafeTensors(absl::StrCat(folder, "/", name),
                                          std::move(shards[i]), metadata));
  }
  return WriteFileAtomically(absl::StrCat(folder, "/", kHfIndex),
                             index.dump(2) + "\n");
}

// Moves the files of `from` to `to`, then removes `from`. Weights that were in
// `to` under another layout go: a reader could take them for these.
absl::Status MoveFiles(const std::string& from, const std::string& to) {
  std::error_code error;
  for (const char* name : {kHfSingle, kHfIndex}) {
    if (!fs::exists(absl::StrCat(from, "/", name), error)) {
      fs::remove(absl::StrCat(to, "/", name), error);
    }
  }
  // What makes the folder readable goes last: a folder that lacks it is none.
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(from, error)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end(), [](const auto& a, const auto& b) {
    const auto rank = [](const std::string& name) {
      return std::pair(name == "config.json" ? 2 : name == kHfIndex, name);
    };
    return rank(a) < rank(b);
  });
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(to, "/", name);
    fs::rename(absl::StrCat(from, "/", name), path, error);
    if (error) return FileError(path, "write", error.value());
  }
  return SyncFolder(to);
}

}  // namespace

std::string HfLayout::ToText() const {
  nlohmann::json json = nlohmann::json::object();
  for (const auto& [canonical, entry] : entries) {
    json[canonical] = {entry.name, std::string(SafeTensorsDType(entry.dtype))};
  }
  return json.dump();
}

absl::StatusOr<HfLayout> HfLayout::FromText(absl::string_view text) {
  MIMO_ASSIGN_OR_RETURN(const ConfigNode root,
                        ParseJson(std::string(text), kHfLayoutKey));
  HfLayout layout;
  for (const ConfigNode& child : root.children) {
    const bool pair = child.children.size() == 2;
    const auto dtype =
        pair ? DTypeFromSafeTensors(child.children[1].text) : std::nullopt;
    if (!dtype || child.children[0].text.empty()) {
      return child.Error("wanted [name, dtype]");
    }
    layout.entries[child.key] = {child.children[0].text, *dtype};
  }
  return layout;
}

absl::StatusOr<HfLayout> ReadHfLayout(const std::string& folder) {
  MIMO_ASSIGN_OR_RETURN(const HfWeights weights, HfWeights::Open(folder));
  HfLayout layout;
  for (const auto& [canonical, place] : weights.places) {
    layout.entries[canonical] = {place.name, place.info().dtype};
  }
  return layout;
}

absl::Status LoadHfParameters(const std::string& folder,
                              const std::vector<Parameter*>& parameters) {
  MIMO_ASSIGN_OR_RETURN(const LlavaConfig config, ReadHfLlavaConfig(folder));
  MIMO_ASSIGN_OR_RETURN(const HfWeights weights, HfWeights::Open(folder));
  const std::vector<HfParameter> table = HfParameters(config);
  const std::map<std::string, HfParameter> rows = ByName(table);
  Problems problems(folder);
  for (const Parameter* parameter : parameters) {
    const auto row = rows.find(parameter->name);
    if (row == rows.end()) {
      problems.Add(parameter->name, " is missing in its config.json's model");
    } else {
      problems.WantShape(parameter->name, row->second.shape, parameter->whole);
      CheckTensors(row->second, weights, problems);
    }
  }
  CheckUnknown(table, config.language.tie_word_embeddings, weights, problems);
  MIMO_RETURN_IF_ERROR(problems.status());
  for (const Parameter* parameter : parameters) {
    MIMO_RETURN_IF_ERROR(
        LoadPart(rows.at(parameter->name), weights, *parameter));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, Tensor>> LoadHfTensors(
    const std::string& folder, Allocator& allocator) {
  MIMO_ASSIGN_OR_RETURN(const LlavaConfig config, ReadHfLlavaConfig(folder));
  MIMO_ASSIGN_OR_RETURN(const HfWeights weights, HfWeights::Open(folder));
  const std::vector<HfParameter> table = HfParameters(config);
  Problems problems(folder);
  for (const HfParameter& row : table) CheckTensors(row, weights, problems);
  CheckUnknown(table, config.language.tie_word_embeddings, weights, problems);
  MIMO_RETURN_IF_ERROR(problems.status());

  std::map<std::string, Tensor> tensors;
  for (const HfParameter& row : table) {
    std::set<DType> dtypes;
    for (const HfTensor& tensor : row.tensors) {
      dtypes.insert(weights.places.at(tensor.name).info().dtype);
    }
    // One that holds them all.
    const DType dtype = dtypes.size() == 1                 ? *dtypes.begin()
                        : dtypes.contains(DType::kFloat64) ? DType::kFloat64
                                                           : DType::kFloat32;
    Tensor& parameter = tensors[row.name];
    parameter = Tensor(allocator, row.shape, dtype);
    for (const HfTensor& tensor : row.tensors) {
      MIMO_RETURN_IF_ERROR(weights.Load(tensor, parameter));
    }
  }
  return tensors;
}

absl::Status SaveHfCheckpoint(const std::string& folder,
                              const LlavaConfig& config,
                              const std::map<std::string, Tensor>& tensors,
                              const HfSaveOptions& options) {
  const HfLayout& layout = options.layout;
  const std::map<std::string, HfParameter> rows = ByName(HfParameters(config));
  Problems problems("model");
  for (const auto& [name, row] : rows) {
    const auto it = tensors.find(name);
    if (it == tensors.end()) {
      problems.Add(name, " is missing");
    } else {
      problems.WantShape(name, it->second.shape(), row.shape);
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (!rows.contains(name)) problems.Add(name, " is not wanted");
  }
  MIMO_RETURN_IF_ERROR(problems.status());

  std::vector<SafeTensorToWrite> entries;
  auto add = [&](const std::string& canonical, const Tensor& tensor) {
    const auto it = layout.entries.find(canonical);
    const DType kept =
        it == layout.entries.end() ? tensor.dtype() : it->second.dtype;
    entries.push_back(
        {NameOnDisk(layout, canonical), tensor, options.dtype.value_or(kept)});
  };
  for (const auto& [name, row] : rows) {
    for (const HfTensor& tensor : row.tensors) {
      const Tensor view = View(tensors.at(name), tensor);
      add(tensor.name, view);
      if (tensor.name == kHfEmbedding && config.language.tie_word_embeddings &&
          layout.entries.contains(kHfHead)) {
        add(kHfHead, view);
      }
    }
  }
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  std::string json = options.config_json;
  if (json.empty()) {
    MIMO_ASSIGN_OR_RETURN(json, HfLlavaConfigJson(config, entries[0].dtype));
  }

  std::error_code error;
  const bool made = fs::create_directories(folder, error);
  if (error) return FileError(folder, "make", error.value());
  const std::string part = folder + "/.tmp_export";
  fs::remove_all(part, error);
  const absl::Cleanup remove = [&] {
    fs::remove_all(part, error);
    if (made) fs::remove(folder, error);  // if it is empty
  };
  fs::create_directory(part, error);
  if (error) return FileError(folder, "write", error.value());
  MIMO_RETURN_IF_ERROR(
      WriteWeights(part, std::move(entries), options.max_shard_bytes));
  MIMO_RETURN_IF_ERROR(WriteFileAtomically(part + "/config.json", json));
  return MoveFiles(part, folder);
}

absl::StatusOr<std::map<std::string, Tensor>> HfGradients(
    const std::vector<Parameter*>& parameters, const LlavaConfig& config,
    Allocator& allocator, const HfLayout& layout) {
  const std::map<std::string, HfParameter> rows = ByName(HfParameters(config));
  Problems problems("model");
  std::map<std::string, Tensor> gradients;
  for (Parameter* parameter : parameters) {
    const auto row = rows.find(parameter->name);
    if (row == rows.end()) {
      problems.Add(parameter->name, " is not in a Hugging Face LLaVA");
      continue;
    }
    const Tensor& data = parameter->data;
    CHECK(data.shape() == row->second.shape) << parameter->name;
    const Tensor gradient = parameter->main_grad.defined()
                                ? parameter->Grad()
                                : Tensor::Zeros(allocator, data.shape(),
                                                AccumulatorOf(data.dtype()));
    for (const HfTensor& tensor : row->second.tensors) {
      gradients[NameOnDisk(layout, tensor.name)] = View(gradient, tensor);
    }
  }
  MIMO_RETURN_IF_ERROR(problems.status());
  return gradients;
}

}  // namespace mimo
