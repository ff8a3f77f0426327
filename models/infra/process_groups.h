// ProcessGroupCollection: this rank's groups in one module, as
// models/parallelism/module_grid.h lists them. They belong to the module's
// grid, which outlives the collection. A collection exists only for a module
// that this rank is part of.
// Source: Megatron-Core, process_groups_config.py (names, errors).
#ifndef MIMO_MODELS_INFRA_PROCESS_GROUPS_H_
#define MIMO_MODELS_INFRA_PROCESS_GROUPS_H_

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "comm/base/communicator.h"
#include "comm/grid/hyper_comm_grid.h"

namespace mimo {

struct ProcessGroupCollection {
  Communicator *tp = nullptr, *cp = nullptr, *pp = nullptr, *dp = nullptr;
  Communicator *dp_cp = nullptr, *tp_cp = nullptr, *tp_dp = nullptr;
  Communicator* mp = nullptr;              // tp and pp
  Communicator* tp_dp_cp = nullptr;        // a pipeline stage
  Communicator* intra_dist_opt = nullptr;  // the whole module
  // Of the experts' factorisation.
  Communicator *ep = nullptr, *expt_tp = nullptr, *expt_dp = nullptr;
  Communicator *tp_ep = nullptr, *tp_ep_pp = nullptr;
  // Null but on the first stage; on the first and the last.
  Communicator *pos_embd = nullptr, *embd = nullptr;
  // Of one instance of the distributed optimizer, and there is one.
  Communicator *intra_dp_cp = nullptr, *intra_expt_dp = nullptr;
  // Weights sharded over ranks with data of their own: no module is, so that
  // the first two are null, and the others as without.
  Communicator* gtp_remat = nullptr;
  Communicator* expt_gtp_remat = nullptr;
  Communicator* dp_cp_gtp_remat = nullptr;
  Communicator* expt_dp_gtp_remat = nullptr;
  Communicator* tp_ep_pp_with_egtp_remat = nullptr;

  // By name. NotFound: no such field. FailedPrecondition: this rank has none.
  absl::StatusOr<Communicator*> Get(absl::string_view field) const;

  // True too where there is no pipeline.
  bool IsFirstStage() const { return pp == nullptr || pp->rank() == 0; }
  bool IsLastStage() const {
    return pp == nullptr || pp->rank() == pp->size() - 1;
  }
};

// Makes all groups of `grid`; called by every rank of the world.
absl::Status CreateProcessGroups(HyperCommGrid& grid);
// Those of this rank, which is in the grid.
ProcessGroupCollection GetProcessGroups(const HyperCommGrid& grid);

// The collections of the modules that this rank is part of.
class MultiModuleProcessGroupCollection {
 public:
  using Collections =
      std::map<std::string, std::shared_ptr<const ProcessGroupCollection>>;

  // Errors: no modules; a language module that is not among them.
  static absl::StatusOr<MultiModuleProcessGroupCollection> Create(
      Collections modules, std::optional<std::string> language_model_name);

  const Collections& modules() const { return modules_; }
  // NotFound for a module that this rank is no part of.
  absl::StatusOr<const ProcessGroupCollection*> Get(
      absl::string_view module) const;
  // FailedPrecondition on a rank without the language module; both.
  absl::StatusOr<const ProcessGroupCollection*> Language() const;
  absl::StatusOr<int> LanguageContextParallelSize() const;

 private:
  Collections modules_;
  std::optional<std::string> language_;
};

}  // namespace mimo

#endif  // MIMO_MODELS_INFRA_PROCESS_GROUPS_H_
