// ModelPlacement: where the modules of a model are, as one rank sees it.
#ifndef MIMO_MODELS_MIMO_MODEL_MODEL_PLACEMENT_H_
#define MIMO_MODELS_MIMO_MODEL_MODEL_PLACEMENT_H_

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "mimo/data/batch.h"
#include "mimo/nn/parallel_groups.h"
#include "models/infra/mimo_infra.h"
#include "models/mimo_model/rank_role.h"

namespace mimo {

struct ModelPlacement {
  RankRole role;
  // Of this rank's modules, by name.
  std::map<std::string, ParallelGroups> parallel;
  std::shared_ptr<const MimoInfra> infra;  // whose groups these are; or none

  // Of a module of this rank; one rank's where nothing is said.
  ParallelGroups GroupsOf(const std::string& module) const;
  // SliceOfModule; all of it where there is no infra, or the module not here.
  DataSlice SliceOf(const std::string& module) const;
};

// An idle rank of the infra has a role without modules.
absl::StatusOr<ModelPlacement> PlaceModel(
    std::shared_ptr<const MimoInfra> infra, int rank);

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MODEL_PLACEMENT_H_
