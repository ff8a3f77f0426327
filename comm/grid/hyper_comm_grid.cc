#include "comm/grid/hyper_comm_grid.h"

#include <utility>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// "group 'dp-cp'", "group 'expert.ep' for view 'expert'".
std::string Describe(const std::string& key, absl::string_view view) {
  const bool is_private = absl::StartsWith(key, absl::StrCat(view, "."));
  return absl::StrCat("group '", key, "'",
                      is_private ? absl::StrCat(" for view '", view, "'") : "");
}

}  // namespace

HyperCommGrid::HyperCommGrid(std::string name, RankGrid ranks,
                             Communicator& world)
    : name_(std::move(name)), ranks_(std::move(ranks)), world_(world) {
  CHECK_LE(ranks_.rank_offset() + ranks_.size(), world_.size())
      << "grid " << name_ << ": ranks found and wanted";
}

HyperCommGrid::~HyperCommGrid() { Destroy(); }

absl::StatusOr<Communicator*> HyperCommGrid::Create(Dims dims,
                                                    absl::string_view view) {
  MIMO_ASSIGN_OR_RETURN(const std::string key, ranks_.Key(dims, view));
  MIMO_ASSIGN_OR_RETURN(RankGroups groups, ranks_.Groups(dims, view));
  return Make(key, Describe(key, view), std::move(groups));
}

absl::StatusOr<Communicator*> HyperCommGrid::Get(Dims dims,
                                                 absl::string_view view) const {
  MIMO_ASSIGN_OR_RETURN(const std::string key, ranks_.Key(dims, view));
  return Find(key, Describe(key, view));
}

absl::StatusOr<Communicator*> HyperCommGrid::CreateNamed(
    const std::string& key, const RankGroups& groups) {
  return Make(key, Describe(key, RankGrid::kBase), groups);
}

absl::StatusOr<Communicator*> HyperCommGrid::GetNamed(
    absl::string_view key) const {
  return Find(key, Describe(std::string(key), RankGrid::kBase));
}

absl::StatusOr<Communicator*> HyperCommGrid::Make(const std::string& key,
                                                  const std::string& what,
                                                  RankGroups groups) {
  if (Find(key, what).ok())
    return absl::AlreadyExistsError(absl::StrCat("grid '", name_, "': ", what,
                                                 " has already been created"));
  if (world_.rank() == 0)
    LOG(INFO) << "grid '" << name_ << "': " << what << ": "
              << groups.ToString();
  for (const Group& made : groups_)
    if (made.ranks == groups) {
      groups_.push_back({key, std::move(groups), made.communicator});
      return groups_.back().communicator.get();
    }
  std::vector<std::vector<int>> lists;
  lists.reserve(groups.size());
  for (int group = 0; group < groups.size(); ++group)
    lists.emplace_back(groups[group].begin(), groups[group].end());
  MIMO_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator,
                        world_.Split(absl::StrCat(name_, "/", key), lists));
  groups_.push_back({key, std::move(groups), std::move(communicator)});
  return groups_.back().communicator.get();
}

absl::StatusOr<Communicator*> HyperCommGrid::Find(
    absl::string_view key, const std::string& what) const {
  for (const Group& group : groups_)
    if (group.key == key) return group.communicator.get();
  return absl::FailedPreconditionError(absl::StrCat(
      "grid '", name_, "': ", what, " hasn't been created. Call Create first"));
}

void HyperCommGrid::Destroy() {
  for (Group& group : groups_) group.communicator.reset();
  groups_.clear();
}

}  // namespace mimo
