#include "models/infra/process_groups.h"

#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "models/parallelism/module_grid.h"

namespace mimo {
namespace {

using Collection = ProcessGroupCollection;
using Field = Communicator* Collection::*;

// Null when there is no such field.
Field FindField(absl::string_view name) {
  static constexpr std::pair<absl::string_view, Field> kFields[] = {
      {"tp", &Collection::tp},
      {"cp", &Collection::cp},
      {"pp", &Collection::pp},
      {"dp", &Collection::dp},
      {"dp_cp", &Collection::dp_cp},
      {"tp_cp", &Collection::tp_cp},
      {"mp", &Collection::mp},
      {"tp_dp", &Collection::tp_dp},
      {"tp_dp_cp", &Collection::tp_dp_cp},
      {"intra_dist_opt", &Collection::intra_dist_opt},
      {"ep", &Collection::ep},
      {"expt_tp", &Collection::expt_tp},
      {"expt_dp", &Collection::expt_dp},
      {"tp_ep", &Collection::tp_ep},
      {"tp_ep_pp", &Collection::tp_ep_pp},
      {"pos_embd", &Collection::pos_embd},
      {"embd", &Collection::embd},
      {"intra_dp_cp", &Collection::intra_dp_cp},
      {"intra_expt_dp", &Collection::intra_expt_dp},
      {"gtp_remat", &Collection::gtp_remat},
      {"expt_gtp_remat", &Collection::expt_gtp_remat},
      {"dp_cp_gtp_remat", &Collection::dp_cp_gtp_remat},
      {"expt_dp_gtp_remat", &Collection::expt_dp_gtp_remat},
      {"tp_ep_pp_with_egtp_remat", &Collection::tp_ep_pp_with_egtp_remat},
  };
  for (const auto& [field, member] : kFields) {
    if (field == name) return member;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<Communicator*> ProcessGroupCollection::Get(
    absl::string_view field) const {
  const Field member = FindField(field);
  if (member == nullptr) {
    return absl::NotFoundError(absl::StrCat("Unknown attribute '", field, "'"));
  }
  if (this->*member == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("this rank has no group '", field, "'"));
  }
  return this->*member;
}

absl::Status CreateProcessGroups(HyperCommGrid& grid) {
  for (const ModuleGroup& group : ModuleGroups()) {
    MIMO_RETURN_IF_ERROR((group.members == ModuleGroup::kAll
                              ? grid.Create(group.dims, group.view)
                              : grid.CreateNamed(group.Name(grid.ranks()),
                                                 group.Ranks(grid.ranks())))
                             .status());
  }
  return absl::OkStatus();
}

ProcessGroupCollection GetProcessGroups(const HyperCommGrid& grid) {
  CHECK(grid.ContainsThisRank()) << grid.name();
  ProcessGroupCollection collection;
  for (const ModuleGroup& group : ModuleGroups()) {
    const auto made = group.members == ModuleGroup::kAll
                          ? grid.Get(group.dims, group.view)
                          : grid.GetNamed(group.Name(grid.ranks()));
    CHECK_OK(made.status());
    const Field field = FindField(group.field);
    CHECK(field != nullptr) << group.field;
    collection.*field = *made;
  }
  collection.intra_dp_cp = collection.dp_cp_gtp_remat = collection.dp_cp;
  collection.intra_expt_dp = collection.expt_dp_gtp_remat = collection.expt_dp;
  collection.tp_ep_pp_with_egtp_remat = collection.tp_ep_pp;
  return collection;
}

absl::StatusOr<MultiModuleProcessGroupCollection>
MultiModuleProcessGroupCollection::Create(
    Collections modules, std::optional<std::string> language_model_name) {
  if (modules.empty()) {
    return absl::InvalidArgumentError("module_pgs dict cannot be empty");
  }
  MultiModuleProcessGroupCollection all;
  all.modules_ = std::move(modules);
  all.language_ = std::move(language_model_name);
  if (all.language_) {
    MIMO_RETURN_IF_ERROR(all.Get(*all.language_).status());
  }
  return all;
}

absl::StatusOr<const ProcessGroupCollection*>
MultiModuleProcessGroupCollection::Get(absl::string_view module) const {
  const auto found = modules_.find(std::string(module));
  if (found == modules_.end()) {
    return absl::NotFoundError(
        absl::StrCat("module '", module, "' not found in collections, found [",
                     absl::StrJoin(modules_, ", ",
                                   [](std::string* out, const auto& entry) {
                                     absl::StrAppend(out, entry.first);
                                   }),
                     "]"));
  }
  return found->second.get();
}

absl::StatusOr<const ProcessGroupCollection*>
MultiModuleProcessGroupCollection::Language() const {
  if (!language_) {
    return absl::FailedPreconditionError("No language model specified");
  }
  return Get(*language_);
}

absl::StatusOr<int>
MultiModuleProcessGroupCollection::LanguageContextParallelSize() const {
  MIMO_ASSIGN_OR_RETURN(const ProcessGroupCollection* language, Language());
  return language->cp->size();
}

}  // namespace mimo
