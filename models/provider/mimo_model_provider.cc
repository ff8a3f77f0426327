#include "models/provider/mimo_model_provider.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <string>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/cast.h"
#include "models/parallelism/module_parallelism.h"

namespace mimo {
namespace {

// One of the language module's sizes.
int LanguageSize(const std::optional<MimoParallelismConfig>& parallelism,
                 int ModuleParallelismConfig::*size) {
  if (!parallelism) return 1;
  const ModuleParallelismConfig* language =
      parallelism->Find(parallelism->llm_module_name);
  return language == nullptr ? 1 : language->*size;
}

// Of one rank that has every module.
MimoParallelismConfig OneRank(const MimoModelConfig& model) {
  MimoParallelismConfig names;
  for (const auto& [name, spec] : model.modality_submodules_spec)
    names.module_parallelisms.emplace_back(name, ModuleParallelismConfig());
  names.module_parallelisms.emplace_back(names.llm_module_name,
                                         ModuleParallelismConfig());
  return names;
}

// A rank's modules, those last that a forward runs first: their new weights are
// gathered first.
std::vector<std::string> BackwardOrder(const RankRole& role) {
  std::vector<std::string> names = role.ModalityModuleNames();
  if (role.HasLanguageModule()) names.push_back(role.language_module_name);
  std::reverse(names.begin(), names.end());
  return names;
}

// `model` on the device and of the dtype of `build`: its values, which it gives
// up, and what is frozen in it.
absl::StatusOr<std::unique_ptr<MimoModel>> Place(MimoModel& model,
                                                 const ModuleRegistry& registry,
                                                 BuildContext build) {
  Allocator& allocator = *build.allocator;
  const Context ctx{.allocator = &allocator, .compute = allocator.stream()};
  const DType dtype = build.dtype;
  build.initialize = false;
  MIMO_ASSIGN_OR_RETURN(
      auto placed, MimoModel::Build(model.config(), registry, std::move(build),
                                    model.placement()));
  const std::vector<Parameter*> from = model.Parameters(),
                                to = placed->Parameters();
  CHECK_EQ(from.size(), to.size());
  for (size_t i = 0; i < from.size(); ++i) {
    Tensor& values = from[i]->data;
    to[i]->data.CopyFrom(Cast(ctx, values.Clone(allocator), dtype));
    values = Tensor();  // one copy of a parameter at a time
    to[i]->frozen = from[i]->frozen;
    if (to[i]->frozen) to[i]->main_grad = Tensor();
  }
  return placed;
}

}  // namespace

int MimoModelProvider::tensor_model_parallel_size() const {
  return LanguageSize(parallelism,
                      &ModuleParallelismConfig::tensor_model_parallel_size);
}
int MimoModelProvider::pipeline_model_parallel_size() const {
  return LanguageSize(parallelism,
                      &ModuleParallelismConfig::pipeline_model_parallel_size);
}
int MimoModelProvider::context_parallel_size() const {
  return LanguageSize(parallelism,
                      &ModuleParallelismConfig::context_parallel_size);
}

absl::Status MimoModelProvider::CheckModuleNames() const {
  std::set<std::string> found, wanted = {parallelism->llm_module_name};
  for (const std::string& name : parallelism->ModuleNames()) found.insert(name);
  for (const auto& [name, spec] : model.modality_submodules_spec)
    wanted.insert(name);
  if (found == wanted) return absl::OkStatus();
  std::vector<std::string> missing, extra;
  std::ranges::set_difference(wanted, found, std::back_inserter(missing));
  std::ranges::set_difference(found, wanted, std::back_inserter(extra));
  return absl::InvalidArgumentError(absl::StrFormat(
      "modules: module_to_grid_map keys must match modality module names + "
      "'%s': missing [%s], extra [%s]",
      parallelism->llm_module_name, absl::StrJoin(missing, ", "),
      absl::StrJoin(extra, ", ")));
}

absl::Status MimoModelProvider::Finalize(int world_size) {
  if (model.language_model_spec.type.empty()) {
    return absl::InvalidArgumentError(
        "language_model_spec must be set before calling provide()");
  }
  if (!parallelism) return absl::OkStatus();
  for (const auto& [modality, id] : parallelism->special_token_ids) {
    const auto own = model.special_token_ids.find(modality);
    if (own != model.special_token_ids.end() && own->second == id) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "special_token_ids.%s: %d, wanted the model's %s", modality, id,
        own == model.special_token_ids.end() ? "(none)"
                                             : absl::StrCat(own->second)));
  }
  // The language module missing has words of its own.
  if (parallelism->Find(parallelism->llm_module_name) != nullptr) {
    MIMO_RETURN_IF_ERROR(CheckModuleNames());
  }
  return parallelism->Finalize(world_size);
}

absl::StatusOr<std::shared_ptr<const MimoInfra>> MimoModelProvider::BuildInfra(
    Communicator* world) {
  if (world == nullptr && parallelism) {
    return absl::FailedPreconditionError(
        "parallelism requires the world's communicator to be initialized "
        "before finalize()");
  }
  MIMO_RETURN_IF_ERROR(Finalize(world == nullptr ? 1 : world->size()));
  MimoInfra infra{.parallelism = parallelism.value_or(OneRank(model))};
  if (infra_ != nullptr) {
    if (world != world_ || infra.parallelism != infra_->parallelism)
      return absl::FailedPreconditionError(
          "the infra was built for another world, parallelism or modules");
    return infra_;
  }
  infra.topology = infra.parallelism.Topology();
  infra.module_output_ndim = infra.parallelism.OutputNdims();
  if (parallelism) {
    MIMO_ASSIGN_OR_RETURN(infra, mimo::BuildInfra(*parallelism, *world));
  }
  world_ = world;
  return infra_ = std::make_shared<const MimoInfra>(std::move(infra));
}

absl::StatusOr<std::unique_ptr<MimoModel>> MimoModelProvider::Provide(
    Communicator* world, BuildContext build) {
  MIMO_ASSIGN_OR_RETURN(const auto infra, BuildInfra(world));
  std::optional<ModelPlacement> placement;
  if (parallelism) {
    MIMO_ASSIGN_OR_RETURN(placement, PlaceModel(infra, world->rank()));
  }
  return MimoModel::Build(model, registry_, std::move(build),
                          std::move(placement));
}

absl::StatusOr<DistributedModel> MimoModelProvider::ProvideDistributedModel(
    Communicator* world, Allocator& allocator,
    const DistributedModelOptions& options) {
  if (options.wrap_with_ddp && !options.ddp_config) {
    return absl::InvalidArgumentError(
        "ddp_config is required when wrap_with_ddp is True");
  }
  if (options.use_fsdp) {
    return absl::UnimplementedError("FSDP is not yet supported");
  }
  const DType of_model = options.dtype.value_or(dtype);
  if (of_model == DType::kFloat16) {
    return absl::UnimplementedError(
        "dtype: float16, wanted bfloat16: float16's gradients would need a "
        "loss scale that all modules agree on");
  }
  MIMO_ASSIGN_OR_RETURN(const auto infra, BuildInfra(world));
  const bool meta =
      options.init_model_with_meta_device.value_or(init_model_with_meta_device);
  const BuildContext in_place{.allocator = &allocator,
                              .dtype = of_model,
                              .seed = seed,
                              .meta = meta,
                              .initialize = initialize};
  const auto hooks = options.pre_wrap_hooks.value_or(pre_wrap_hooks);
  BuildContext first = in_place;
  Allocator host;
  const bool seen = !hooks.empty() && !meta;  // before it is moved and cast
  if (seen) {
    first.allocator = &host;
    if (of_model == DType::kBFloat16) first.dtype = DType::kFloat32;
  }
  DistributedModel provided;
  MIMO_ASSIGN_OR_RETURN(provided.model, Provide(world, first));
  for (const PreWrapHook& hook : hooks) {
    MIMO_RETURN_IF_ERROR(hook(provided.model));
    if (provided.model == nullptr) {
      return absl::InvalidArgumentError(
          "a pre-wrap hook left no model, wanted exactly one");
    }
  }
  if (seen) {
    MIMO_ASSIGN_OR_RETURN(provided.model,
                          Place(*provided.model, registry_, in_place));
  }
  if (options.wrap_with_ddp && !meta) {
    std::vector<DataParallelModule> modules;
    for (const std::string& name : BackwardOrder(provided.model->role())) {
      DataParallelModule& module = modules.emplace_back();
      module.name = name;
      module.parameters = provided.model->module(name).Parameters();
      if (!parallelism) continue;
      const ProcessGroupCollection& groups = *infra->pg_collections.at(name);
      module.group = groups.dp_cp;
      module.tp = groups.tp;
      module.embd = groups.embd;
    }
    provided.data_parallel = std::make_unique<DistributedDataParallel>(
        modules, allocator, *options.ddp_config);
  }
  for (const PostWrapHook& hook :
       options.post_wrap_hooks.value_or(post_wrap_hooks)) {
    MIMO_RETURN_IF_ERROR(hook(provided));
    if (provided.model == nullptr) {
      return absl::InvalidArgumentError(
          "a post-wrap hook left no model, wanted exactly one");
    }
  }
  return provided;
}

absl::Status MimoModelProvider::InitializeModelParallel() const {
  return absl::UnimplementedError(
      "initialize_model_parallel: global parallel state would corrupt the "
      "groups of the modules, which each have their own; call BuildInfra");
}

}  // namespace mimo
