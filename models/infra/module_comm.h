// How the output of one module reaches another: the configurations from which
// bridges are made (models/mimo_model/model_links.h). Both kinds refer to the
// infra that they are asked of.
// Source: Megatron-Bridge, megatron_mimo_provider.py; Megatron-Core,
// bridge_communicator.py.
#ifndef MIMO_MODELS_INFRA_MODULE_COMM_H_
#define MIMO_MODELS_INFRA_MODULE_COMM_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/types/span.h"
#include "comm/bridge/bridge_plan.h"
#include "comm/grid/hyper_comm_grid.h"
#include "kernels/base/dtype.h"
#include "models/parallelism/topology.h"

namespace mimo {

// Of a homogeneous deployment, the same grid for all modules.
using ModuleGrids = std::map<std::string, std::shared_ptr<HyperCommGrid>>;

// Which axis of a tensor of three is batch, sequence and hidden: [B, S, H].
struct DimMapping {
  int b = 0, s = 1, h = 2;
  bool operator==(const DimMapping&) const = default;
};

// Of modules that all have the same ranks, homogeneous ones too.
struct ColocatedCommConfig {
  const ModuleGrids& module_to_grid_map;
  const ModuleTopology& topology;
  DimMapping dim_mapping = {};
};

// Of one edge of the topology.
struct BridgeConfig {
  std::string source, destination;  // modules
  const HyperCommGrid *source_grid, *destination_grid;
  int tensor_ndim;  // 2: rows of all samples, [tokens, H]; 3: dim_mapping
  DimMapping dim_mapping = {};

  // The axis along which replicas divide what the source gives.
  int batch_axis() const { return tensor_ndim == 2 ? 0 : dim_mapping.b; }
  // Of tensors of this shape, whatever their size along batch_axis(); without
  // the lanes' rows.
  BridgePayload Payload(absl::Span<const int64_t> shape, DType dtype) const;
};

}  // namespace mimo

#endif  // MIMO_MODELS_INFRA_MODULE_COMM_H_
