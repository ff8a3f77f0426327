#include "mimo/checkpoint/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/log/check.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/types/span.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/atomic_file.h"
#include "mimo/data/file.h"
#include "mimo/parallel/sum_over_ranks.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "iter_";
constexpr char kTemporary[] = ".tmp_";

// On all ranks the first one's error, if there is one.
absl::Status Agree(const CheckpointRanks& ranks, absl::Status status) {
  if (ranks.world == nullptr) return status;
  return AgreeOverRanks(ranks.world, *ranks.allocator, std::move(status));
}

// Every value of state.json.
template <typename State, typename F>
void ForEachField(State& state, F&& f) {
  f("iteration", state.iteration);
  f("consumed_samples", state.consumed_samples);
  f("optimizer_steps", state.optimizer_steps);
  f("skipped_iterations", state.skipped_iterations);
  f("seed", state.seed);
}

// The names in `folder` that begin with `prefix`.
std::vector<std::string> List(const std::string& folder,
                              absl::string_view prefix) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; it != end && !error;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (absl::StartsWith(name, prefix)) names.push_back(name);
  }
  return names;
}

// What rank `rank` says in the manifest, until rank 0 has merged it.
std::string ManifestOf(const std::string& folder, int rank) {
  return absl::StrCat(folder, "/", kManifestFile, ".", rank);
}

absl::Status WriteTensors(const std::string& folder,
                          const Checkpoint& checkpoint, int rank, int size) {
  std::string manifest;
  MIMO_RETURN_IF_ERROR(WriteSlices(folder, "model", checkpoint.model,
                                   checkpoint.metadata, rank, size, manifest));
  MIMO_RETURN_IF_ERROR(WriteSlices(folder, "optimizer", checkpoint.optimizer,
                                   {}, rank, size, manifest));
  if (size == 1) return absl::OkStatus();
  return WriteFileAtomically(ManifestOf(folder, rank), manifest);
}

absl::Status MergeManifest(const std::string& folder, int size) {
  std::vector<std::string> manifests(size);
  for (int rank = 0; rank < size; ++rank) {
    const std::string path = ManifestOf(folder, rank);
    MIMO_ASSIGN_OR_RETURN(manifests[rank], ReadFile(path));
    std::error_code error;
    fs::remove(path, error);
  }
  return WriteFileAtomically(absl::StrCat(folder, "/", kManifestFile),
                             MergeManifests(manifests));
}

absl::Status WriteRest(const std::string& folder,
                       const Checkpoint& checkpoint) {
  nlohmann::ordered_json state;
  ForEachField(checkpoint.state,
               [&](const char* name, int64_t value) { state[name] = value; });
  MIMO_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder, "/state.json"),
                                           state.dump(2) + "\n"));
  for (const auto& [name, bytes] : checkpoint.files) {
    CHECK(!absl::StrContains(name, '/')) << name;
    MIMO_RETURN_IF_ERROR(
        WriteFileAtomically(absl::StrCat(folder, "/", name), bytes));
  }
  return SyncFolder(folder);
}

// Puts the folder `made` at `path`. One that is there goes to `made`, in one
// step where the file system can.
absl::Status Place(const std::string& made, const std::string& path) {
  int result = rename(made.c_str(), path.c_str());
  if (result != 0 && (errno == ENOTEMPTY || errno == EEXIST)) {
    result = renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, path.c_str(),
                       RENAME_EXCHANGE);
    if (result != 0 && errno == EINVAL) {  // NFS, for one
      std::error_code error;
      fs::remove_all(path, error);
      result = rename(made.c_str(), path.c_str());
    }
  }
  return result == 0 ? absl::OkStatus() : FileError(path, "write", errno);
}

// Removes all but the newest `keep` of the iterations up to `iteration`.
void Prune(const std::string& folder, int64_t iteration, int64_t keep) {
  std::vector<std::pair<int64_t, std::string>> old;
  for (const std::string& name : List(folder, kPrefix)) {
    int64_t number;
    if (absl::SimpleAtoi(name.substr(sizeof(kPrefix) - 1), &number) &&
        number <= iteration) {
      old.emplace_back(-number, name);
    }
  }
  std::sort(old.begin(), old.end());
  for (size_t i = keep; i < old.size(); ++i) {
    // Renamed first: a part of a checkpoint is never seen under its name.
    const std::string gone =
        absl::StrCat(folder, "/", kTemporary, old[i].second);
    std::error_code error;
    fs::rename(absl::StrCat(folder, "/", old[i].second), gone, error);
    if (!error) fs::remove_all(gone, error);
  }
}

}  // namespace

SliceMap SlicesOf(const std::vector<Parameter*>& parameters) {
  SliceMap slices;
  for (Parameter* p : parameters) {
    CHECK(slices.emplace(p->name, SliceOf({p, 0, p->data.numel()}, p->data))
              .second)
        << "two parameters are named " << p->name;
  }
  return slices;
}

absl::Status SaveCheckpoint(const std::string& folder,
                            const Checkpoint& checkpoint, int64_t keep,
                            const CheckpointRanks& ranks) {
  const int size = ranks.world == nullptr ? 1 : ranks.world->size();
  const int rank = ranks.world == nullptr ? 0 : ranks.world->rank();
  const std::string name =
      absl::StrFormat("%s%07d", kPrefix, checkpoint.state.iteration);
  const std::string made = absl::StrCat(folder, "/", kTemporary, name);
  std::error_code error;
  const auto make = [&]() -> absl::Status {
    fs::create_directories(folder, error);
    if (error) return FileError(folder, "make", error.value());
    // What an earlier save that was stopped has left.
    for (const std::string& left : List(folder, kTemporary)) {
      fs::remove_all(absl::StrCat(folder, "/", left), error);
    }
    fs::create_directory(made, error);
    return error ? FileError(made, "make", error.value()) : absl::OkStatus();
  };
  const auto finish = [&]() -> absl::Status {
    if (size > 1) MIMO_RETURN_IF_ERROR(MergeManifest(made, size));
    MIMO_RETURN_IF_ERROR(WriteRest(made, checkpoint));
    MIMO_RETURN_IF_ERROR(Place(made, absl::StrCat(folder, "/", name)));
    MIMO_RETURN_IF_ERROR(SyncFolder(folder));
    MIMO_RETURN_IF_ERROR(
        WriteFileAtomically(absl::StrCat(folder, "/latest"), name + "\n"));
    return SyncFolder(folder);
  };
  // Rank 0 makes the folder, all write into it, rank 0 puts it in its place.
  MIMO_RETURN_IF_ERROR(Agree(ranks, rank == 0 ? make() : absl::OkStatus()));
  const absl::Cleanup remove = [&] {
    if (rank == 0) fs::remove_all(made, error);
  };
  MIMO_RETURN_IF_ERROR(
      Agree(ranks, WriteTensors(made, checkpoint, rank, size)));
  MIMO_RETURN_IF_ERROR(Agree(ranks, rank == 0 ? finish() : absl::OkStatus()));
  if (rank == 0 && keep > 0) Prune(folder, checkpoint.state.iteration, keep);
  return absl::OkStatus();
}

absl::StatusOr<std::string> FindCheckpoint(const std::string& path) {
  std::error_code error;
  if (fs::exists(path + "/state.json", error)) return path;
  const std::string latest = path + "/latest";
  if (!fs::exists(latest, error)) {
    return absl::NotFoundError(absl::StrCat(
        path, ": ",
        fs::is_directory(path, error) ? "no checkpoint" : "no such folder",
        ", wanted a folder with `latest` or state.json"));
  }
  MIMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(latest));
  const std::string name(absl::StripAsciiWhitespace(text));
  const std::string folder = absl::StrCat(path, "/", name);
  if (!absl::StartsWith(name, kPrefix) || absl::StrContains(name, '/') ||
      !fs::exists(folder + "/state.json", error)) {
    return absl::InvalidArgumentError(
        absl::StrCat(latest, ": \"", name.substr(0, 40),
                     "\", wanted the name of a checkpoint beside it"));
  }
  return folder;
}

absl::StatusOr<TrainState> LoadTrainState(const std::string& folder) {
  const std::string path = folder + "/state.json";
  MIMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a JSON object, wanted a training state"));
  }
  TrainState state;
  std::vector<std::string> bad;
  ForEachField(state, [&](const char* name, int64_t& value) {
    const auto it = json.find(name);
    if (it == json.end() || !it->is_number_integer()) {
      bad.push_back(name);
    } else {
      value = it->get<int64_t>();
    }
  });
  if (!bad.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": missing or not a whole number: ", absl::StrJoin(bad, ", ")));
  }
  return state;
}

absl::Status LoadSlices(const std::string& folder, const std::string& kind,
                        const SliceMap& slices, const CheckpointRanks& ranks) {
  const auto opened = ShardedTensors::Open(folder, kind);
  MIMO_RETURN_IF_ERROR(Agree(ranks, opened.status()));
  const ShardedTensors& source = *opened;
  std::set<std::string> bad;
  for (const auto& [name, slice] : slices) {
    const auto found = source.shapes().find(name);
    if (found == source.shapes().end()) {
      bad.insert(name + " is missing");
    } else if (found->second != slice.whole) {
      bad.insert(absl::StrCat(name, " is ", ToString(found->second),
                              ", wanted ", ToString(slice.whole)));
    }
  }
  std::vector<double> readers;  // of each tensor, in order
  for (const auto& [name, shape] : source.shapes())
    readers.push_back(slices.contains(name) ? 1 : 0);
  if (ranks.world != nullptr) {
    MIMO_RETURN_IF_ERROR(
        SumOverRanks(ranks.world, *ranks.allocator, absl::MakeSpan(readers)));
    MIMO_ASSIGN_OR_RETURN(
        const auto texts,
        GatherTexts(ranks.world, *ranks.allocator, absl::StrJoin(bad, "\n")));
    for (const std::string& text : texts) {
      for (absl::string_view line :
           absl::StrSplit(text, '\n', absl::SkipEmpty())) {
        bad.emplace(line);
      }
    }
  }
  auto ranks_with = readers.begin();
  for (const auto& [name, shape] : source.shapes())
    if (*ranks_with++ == 0) bad.insert(name + " is not wanted");
  if (!bad.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.path(), ": ", absl::StrJoin(bad, "; ")));
  }
  absl::Status status;
  for (const auto& [name, slice] : slices)
    status.Update(source.LoadInto(name, slice));
  return Agree(ranks, std::move(status));
}

}  // namespace mimo
