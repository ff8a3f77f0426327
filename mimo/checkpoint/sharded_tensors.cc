#include "mimo/checkpoint/sharded_tensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/convert.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

using Json = nlohmann::ordered_json;

std::string FileName(const std::string& kind, int rank, int size) {
  if (size == 1) return kind + ".safetensors";
  return absl::StrFormat("%s-%05d-of-%05d.safetensors", kind, rank + 1, size);
}

std::vector<int64_t> ToVector(const Shape& shape) {
  return {shape.begin(), shape.end()};
}

// The value of `json` as a T; nothing if it is something else.
template <typename T>
std::optional<T> As(const Json& json) {
  if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
    if (!json.is_array()) return std::nullopt;
    T values;
    for (const Json& value : json) {
      if (!value.is_number_integer() || value.get<int64_t>() < 0)
        return std::nullopt;
      values.push_back(value.get<int64_t>());
    }
    return values;
  } else {
    if (!json.is_number_integer() || json.get<int64_t>() < 0)
      return std::nullopt;
    return json.get<T>();
  }
}

// A slice's "dim" and "shards", of a tensor of shape `whole`.
std::optional<Sharding> ReadSharding(const Json& slice, const Shape& whole) {
  const auto dim = As<int64_t>(slice.value("dim", Json()));
  const Json shards = slice.value("shards", Json());
  if (!dim || !shards.is_array()) return std::nullopt;
  if (*dim >= std::max<int64_t>(1, whole.size())) return std::nullopt;
  Sharding sharding = {.dim = static_cast<int>(*dim)};
  for (const Json& range : shards) {
    const auto shard = As<std::vector<int64_t>>(range);
    if (!shard || shard->size() != 2 || (*shard)[0] > whole[*dim] ||
        (*shard)[1] > whole[*dim] - (*shard)[0]) {
      return std::nullopt;
    }
    sharding.shards.push_back({.begin = (*shard)[0], .size = (*shard)[1]});
  }
  return sharding;
}

// Elements that a rank's part of a tensor has.
int64_t PartSize(const Shape& whole, const Sharding& sharding) {
  if (sharding.shards.empty()) return NumElements(whole);
  Shape part = whole;
  part[sharding.dim] = 0;
  for (const Shard& shard : sharding.shards) part[sharding.dim] += shard.size;
  return NumElements(part);
}

// `slice` without the rows that another tensor-parallel rank has and saves too,
// which are its last.
TensorSlice WithoutCopies(TensorSlice slice) {
  std::vector<Shard>& shards = slice.sharding.shards;
  if (shards.empty() || slice.sharding.dim != 0) return slice;
  while (!shards.empty() && shards.back().copy > 0) shards.pop_back();
  const int64_t held = slice.data.numel();
  const int64_t own =
      shards.empty() ? 0 : PartSize(slice.whole, slice.sharding) - slice.begin;
  if (own <= 0) {
    slice.copy = true;
  } else if (own < held) {
    slice.data = slice.data.Reshape({held}).Rows(0, own);
  }
  return slice;
}

std::vector<SliceRun> SortedRuns(const Shape& whole, const Sharding& sharding,
                                 int64_t begin, int64_t size) {
  std::vector<SliceRun> runs = RunsOf(whole, sharding, begin, size);
  std::sort(runs.begin(), runs.end(),
            [](const SliceRun& a, const SliceRun& b) { return a.at < b.at; });
  return runs;
}

}  // namespace

SliceMap Whole(const TensorMap& tensors) {
  SliceMap slices;
  for (const auto& [name, tensor] : tensors)
    slices[name] = {.data = tensor, .whole = tensor.shape()};
  return slices;
}

absl::StatusOr<ShardedTensors> ShardedTensors::Open(const std::string& folder,
                                                    const std::string& kind) {
  ShardedTensors self;
  self.path_ = absl::StrCat(folder, "/", kManifestFile);
  if (Exists(self.path_)) {
    MIMO_RETURN_IF_ERROR(self.ReadManifest(folder, kind));
    return self;
  }
  self.path_ = absl::StrCat(folder, "/", FileName(kind, 0, 1));
  MIMO_ASSIGN_OR_RETURN(const SafeTensors file, SafeTensors::Open(self.path_));
  self.metadata_ = file.metadata();
  for (const auto& [name, info] : file.tensors()) {
    self.shapes_[name] = info.shape;
    self.parts_[name] = {{.file = file, .sharding = {}, .begin = 0}};
  }
  return self;
}

absl::Status ShardedTensors::ReadManifest(const std::string& folder,
                                          const std::string& kind) {
  MIMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(path_));
  const Json json = Json::parse(text, nullptr, false);
  const auto wrong = [&](const std::string& name) {
    return absl::InvalidArgumentError(absl::StrCat(
        path_, ": ", kind, ".", name, ": not a tensor's shape and slices"));
  };
  if (!json.is_object() || !json.value(kind, Json()).is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": no ", kind, " in it, wanted its tensors"));
  }
  std::map<std::string, SafeTensors> files;
  for (const auto& [name, entry] : json[kind].items()) {
    if (!entry.is_object()) return wrong(name);
    const auto shape = As<std::vector<int64_t>>(entry.value("shape", Json()));
    const Json slices = entry.value("slices", Json());
    if (!shape || !slices.is_array()) return wrong(name);
    const Shape whole(shape->begin(), shape->end());
    shapes_[name] = whole;
    for (const Json& slice : slices) {
      if (!slice.is_object()) return wrong(name);
      const auto sharding = ReadSharding(slice, whole);
      const auto begin = As<int64_t>(slice.value("begin", Json()));
      const Json file_json = slice.value("file", Json());
      const std::string file =
          file_json.is_string() ? file_json.get<std::string>() : "";
      if (!sharding || !begin || file.empty() || absl::StrContains(file, '/'))
        return wrong(name);
      if (!files.contains(file)) {
        MIMO_ASSIGN_OR_RETURN(
            const SafeTensors opened,
            SafeTensors::Open(absl::StrCat(folder, "/", file)));
        files.emplace(file, opened);
        if (metadata_.empty()) metadata_ = opened.metadata();
      }
      const SafeTensors& tensors = files.at(file);
      const SafeTensorInfo* info = tensors.Find(name);
      const int64_t size = PartSize(whole, *sharding);
      if (info == nullptr || *begin > size - NumElements(info->shape)) {
        return absl::InvalidArgumentError(
            absl::StrCat(tensors.path(), ": tensor ", name, ": ",
                         info == nullptr ? "missing" : ToString(info->shape),
                         ", wanted at most ", size - *begin, " elements, as ",
                         path_, " says"));
      }
      parts_[name].push_back({tensors, *sharding, *begin});
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Tensor> ShardedTensors::Load(const std::string& name,
                                            Allocator& allocator) const {
  const auto found = parts_.find(name);
  if (found == parts_.end() || found->second.empty()) {
    return absl::NotFoundError(
        absl::StrCat(path_, ": no tensor ", name, ", wanted it"));
  }
  const Tensor tensor(allocator, shapes_.at(name),
                      found->second[0].file.Find(name)->dtype);
  MIMO_RETURN_IF_ERROR(
      LoadInto(name, {.data = tensor, .whole = tensor.shape()}));
  return tensor;
}

absl::Status ShardedTensors::LoadInto(const std::string& name,
                                      const TensorSlice& out) const {
  const auto found = shapes_.find(name);
  if (found == shapes_.end() || found->second != out.whole) {
    return absl::InvalidArgumentError(absl::StrCat(
        path_, ": tensor ", name, ": ",
        found == shapes_.end() ? "missing" : ToString(found->second),
        ", wanted ", ToString(out.whole)));
  }
  Allocator host;
  const bool on_host = out.data.device() == Device::kCpu;
  Tensor here =
      on_host ? out.data : Tensor(host, out.data.shape(), out.data.dtype());
  const int64_t to_size = SizeOf(here.dtype());
  const std::vector<SliceRun> wanted =
      SortedRuns(out.whole, out.sharding, out.begin, here.numel());
  std::vector<std::pair<int64_t, int64_t>> copied;  // [at, end)
  const auto parts = parts_.find(name);
  for (const Part& part :
       parts == parts_.end() ? std::vector<Part>() : parts->second) {
    const SafeTensorInfo& info = *part.file.Find(name);
    const char* const data = static_cast<const char*>(part.file.Data(info));
    const std::vector<SliceRun> held = SortedRuns(
        out.whole, part.sharding, part.begin, NumElements(info.shape));
    bool checked = false;
    for (size_t h = 0, w = 0; h < held.size() && w < wanted.size();) {
      const int64_t held_end = held[h].at + held[h].size;
      const int64_t wanted_end = wanted[w].at + wanted[w].size;
      const int64_t at = std::max(held[h].at, wanted[w].at);
      const int64_t end = std::min(held_end, wanted_end);
      if (at < end) {
        if (!std::exchange(checked, true))
          MIMO_RETURN_IF_ERROR(part.file.Check(info));
        const absl::Status status = ConvertElements(
            data + (held[h].from + at - held[h].at) * SizeOf(info.dtype),
            info.dtype,
            static_cast<char*>(here.data()) +
                (wanted[w].from + at - wanted[w].at) * to_size,
            here.dtype(), end - at);
        if (!status.ok()) {
          return absl::Status(status.code(),
                              absl::StrCat(part.file.path(), ": tensor ", name,
                                           ": ", status.message()));
        }
        copied.emplace_back(at, end);
      }
      held_end < wanted_end ? ++h : ++w;
    }
  }
  std::sort(copied.begin(), copied.end());
  size_t next = 0;
  for (const SliceRun& run : wanted) {
    int64_t at = run.at;
    for (; next < copied.size() && copied[next].first <= at &&
           at < run.at + run.size;
         ++next) {
      at = std::max(at, copied[next].second);
    }
    if (at < run.at + run.size) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": tensor ", name, ": element ", at,
                       " is in no file, wanted all of ", ToString(out.whole)));
    }
  }
  if (!on_host) Tensor(out.data).CopyFrom(here);
  return absl::OkStatus();
}

absl::Status WriteSlices(const std::string& folder, const std::string& kind,
                         const SliceMap& slices,
                         const std::map<std::string, std::string>& metadata,
                         int rank, int size, std::string& manifest) {
  const std::string file = FileName(kind, rank, size);
  Json json = manifest.empty() ? Json::object() : Json::parse(manifest);
  Json& tensors = json[kind] = Json::object();
  TensorMap data;
  for (const auto& [name, held] : slices) {
    const TensorSlice slice = WithoutCopies(held);
    if (slice.copy) continue;
    data[name] = slice.data;
    Json shards = Json::array();
    for (const Shard& shard : slice.sharding.shards)
      shards.push_back({shard.begin, shard.size});
    const Json where = {{"file", file},
                        {"dim", slice.sharding.dim},
                        {"shards", shards},
                        {"begin", slice.begin}};
    tensors[name] = {{"shape", ToVector(slice.whole)},
                     {"slices", Json::array({where})}};
  }
  manifest = json.dump();
  return WriteSafeTensors(absl::StrCat(folder, "/", file), data, metadata,
                          /*checksums=*/true);
}

std::string MergeManifests(const std::vector<std::string>& manifests) {
  Json all = Json::object();
  for (const std::string& text : manifests) {
    const Json one = Json::parse(text);
    for (const auto& [kind, tensors] : one.items()) {
      Json& merged = all[kind];
      if (merged.is_null()) merged = Json::object();
      for (const auto& [name, entry] : tensors.items()) {
        if (!merged.contains(name)) {
          merged[name] = entry;
          continue;
        }
        CHECK(merged[name]["shape"] == entry["shape"]) << name;
        Json& slices = merged[name]["slices"];
        slices.insert(slices.end(), entry["slices"].begin(),
                      entry["slices"].end());
      }
    }
  }
  return all.dump() + "\n";
}

}  // namespace mimo
