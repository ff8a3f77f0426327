// MimoModelProvider: specs and parallelism in, this rank's model out.
//
//   Finalize                 checks the specs and the parallelism of a world
//   BuildInfra               grids, groups, topology: no model yet
//   Provide                  the model, and nothing else
//   ProvideDistributedModel  all of it with hooks, and its data parallelism
//
// Every rank of a world calls the same in the same order, with the same fields.
// Pre-wrap hooks see a model, frozen where it will be, in the host's memory and
// no narrower than float32; then it goes to the device and its dtype. With no
// hook to see that, it is built there at once. A rank of no module gets a
// MimoStubModel: no parameters, an error of Forward, and its part in
// what the world does together. Specs are never changed: what a rank adds to
// them (groups, stages, seeds) is in the BuildContext. Source: Megatron-Bridge,
// megatron_mimo_provider.py.
#ifndef MIMO_MODELS_PROVIDER_MIMO_MODEL_PROVIDER_H_
#define MIMO_MODELS_PROVIDER_MIMO_MODEL_PROVIDER_H_

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/base/communicator.h"
#include "mimo/parallel/distributed_data_parallel.h"
#include "models/infra/mimo_infra.h"
#include "models/mimo_model/mimo_model.h"
#include "models/spec/module_spec.h"

namespace mimo {

// A model as this rank trains it.
struct DistributedModel {
  std::unique_ptr<MimoModel> model;
  // Of each of its modules over the module's own replicas: the language model
  // first, then modalities by descending name. Null: not wrapped.
  std::unique_ptr<DistributedDataParallel> data_parallel;
};

// May change the model's values and what is frozen, or put another of the same
// role in its place.
using PreWrapHook =
    std::function<absl::Status(std::unique_ptr<MimoModel>& model)>;
using PostWrapHook = std::function<absl::Status(DistributedModel& model)>;

struct DistributedModelOptions {
  bool wrap_with_ddp = true;
  std::optional<DataParallelOptions> ddp_config;  // needed to wrap
  bool use_fsdp = false;                          // refused: there is none yet
  // In place of the provider's.
  std::optional<DType> dtype;
  std::optional<bool> init_model_with_meta_device;
  std::optional<std::vector<PreWrapHook>> pre_wrap_hooks;
  std::optional<std::vector<PostWrapHook>> post_wrap_hooks;
};

class MimoModelProvider {
 public:
  MimoModelProvider(ModuleRegistry registry, MimoModelConfig model,
                    std::optional<MimoParallelismConfig> parallelism = {})
      : model(std::move(model)),
        parallelism(std::move(parallelism)),
        registry_(std::move(registry)) {}

  MimoModelConfig model;  // specs, special tokens, what is frozen
  // None: one rank has every module, and there are no groups.
  std::optional<MimoParallelismConfig> parallelism;
  DType dtype = DType::kBFloat16;  // not float16: there are no loss scales
  bool init_model_with_meta_device = false;  // shapes alone: a model to count
  uint64_t seed = 0;
  bool initialize = true;  // false: weights come from elsewhere
  std::vector<PreWrapHook> pre_wrap_hooks;  // called in order
  std::vector<PostWrapHook> post_wrap_hooks;

  // Of the language module; 1 without parallelism.
  int tensor_model_parallel_size() const;
  int pipeline_model_parallel_size() const;
  int context_parallel_size() const;

  // Sets data parallel sizes that are left open. Errors: no language model
  // spec; parallelism of other modules than the model has; those of
  // MimoParallelismConfig::Finalize.
  absl::Status Finalize(int world_size);

  // `world` has all ranks and outlives infra and model; null only without
  // parallelism. Built by the first call and given again by later ones; its
  // groups end with the last holder. Other errors than Finalize's:
  // FailedPrecondition when world, parallelism or modules are others than at
  // first.
  absl::StatusOr<std::shared_ptr<const MimoInfra>> BuildInfra(
      Communicator* world);

  // In the memory of `build`, on its device and of its dtype; the model holds
  // the infra. Other errors: MimoModel::Build's.
  absl::StatusOr<std::unique_ptr<MimoModel>> Provide(Communicator* world,
                                                     BuildContext build);

  // Infra, model, pre-wrap hooks, device, dtype, data parallelism, post-wrap
  // hooks, in this order. `allocator`, of the device, outlives the result. A
  // meta model is not wrapped. Other errors: the hooks', and a hook that leaves
  // no model.
  absl::StatusOr<DistributedModel> ProvideDistributedModel(
      Communicator* world, Allocator& allocator,
      const DistributedModelOptions& options = {});

  // Always an error: there is no parallel state of the process.
  absl::Status InitializeModelParallel() const;

 private:
  absl::Status CheckModuleNames() const;

  ModuleRegistry registry_;
  std::shared_ptr<const MimoInfra> infra_;
  Communicator* world_ = nullptr;  // of infra_
};

}  // namespace mimo

#endif  // MIMO_MODELS_PROVIDER_MIMO_MODEL_PROVIDER_H_
