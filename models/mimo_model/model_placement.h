// ModelPlacement: where the modules of a model are, as one rank sees it.
#ifndef MIMO_MODELS_MIMO_MODEL_MODEL_PLACEMENT_H_
#define MIMO_MODELS_MIMO_MODEL_MODEL_PLACEMENT_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "comm/bridge/bridge.h"
#include "mimo/nn/parallel_groups.h"
#include "models/infra/mimo_infra.h"
#include "models/mimo_model/rank_role.h"

namespace mimo {

struct ModelPlacement {
  RankRole role;
  // Of this rank's modules, by name.
  std::map<std::string, ParallelGroups> parallel;
  // Each takes a modality's rows to the language model's replicas on the same
  // ranks; none where they are made where they are wanted.
  std::map<std::string, std::unique_ptr<Bridge>> bridges;
  std::shared_ptr<const MimoInfra> infra;  // whose groups these are; or none
};

// An idle rank of the infra has a role without modules. Bridges are those of a
// colocated deployment.
absl::StatusOr<ModelPlacement> PlaceModel(
    std::shared_ptr<const MimoInfra> infra, int rank);

// What a bridge carries of [n, hidden] rows of `dtype` when the samples of the
// global micro-batch, with these row counts, are dealt to the lanes of either
// side in order. Error: they cannot be.
absl::StatusOr<BridgePayload> RowsPayload(const BridgeSide& source,
                                          const BridgeSide& destination,
                                          absl::Span<const int64_t> sample_rows,
                                          int64_t hidden, DType dtype);

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MODEL_PLACEMENT_H_
