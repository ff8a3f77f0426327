#include "cli/config.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/config/fields.h"

namespace mimo {
namespace {

// Sizes of one module's grid, all 1 so far.
struct OneRank {
  int64_t tensor = 1, pipeline = 1, context = 1, expert = 1, expert_tensor = 1,
          data = 1, offset = 0;
  template <typename V>
  void Fields(V& v) {
    v("tensor_model_parallel_size", tensor);
    v("pipeline_model_parallel_size", pipeline);
    v("context_parallel_size", context);
    v("expert_model_parallel_size", expert);
    v("expert_tensor_parallel_size", expert_tensor);
    v("data_parallel_size", data);
    v("rank_offset", offset);
  }
  absl::Status Validate() const {
    for (const auto& [name, size] :
         {std::pair("tensor_model_parallel_size", tensor),
          {"pipeline_model_parallel_size", pipeline},
          {"context_parallel_size", context},
          {"expert_model_parallel_size", expert},
          {"expert_tensor_parallel_size", expert_tensor},
          {"data_parallel_size", data}}) {
      if (size != 1) {
        return absl::InvalidArgumentError(absl::StrCat(
            name, ": ", size, ", wanted 1 (mimo runs one rank so far)"));
      }
    }
    if (offset != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rank_offset: ", offset, ", wanted 0 (mimo runs one rank so far)"));
    }
    return absl::OkStatus();
  }
};

struct Parallelism {
  std::string deployment_mode = "homogeneous";
  std::string llm_module_name = "language";
  std::map<std::string, OneRank> modules;
  template <typename V>
  void Fields(V& v) {
    v("deployment_mode", deployment_mode);
    v("llm_module_name", llm_module_name);
    v("modules", modules);
  }
  absl::Status Validate() const {
    for (const char* known : {"homogeneous", "colocated", "heterogeneous"}) {
      if (deployment_mode == known) return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat("deployment_mode: \"", deployment_mode,
                     "\", wanted homogeneous, colocated or heterogeneous"));
  }
};

}  // namespace

absl::StatusOr<ConfigNode> ReadRunConfig(
    const std::string& path, const std::vector<std::string>& overrides) {
  MIMO_ASSIGN_OR_RETURN(ConfigNode root, LoadYaml(path));
  for (const std::string& assignment : overrides) {
    MIMO_RETURN_IF_ERROR(ApplyOverride(root, assignment));
  }
  MIMO_RETURN_IF_ERROR(CheckKeys(root, {"model", "parallelism", "data", "train",
                                        "optimizer", "checkpoint", "logging"}));
  Parallelism parallelism;
  MIMO_RETURN_IF_ERROR(FromYaml(root["parallelism"], parallelism));
  return root;
}

absl::StatusOr<RunSections> ReadSections(const ConfigNode& root) {
  RunSections run;
  MIMO_RETURN_IF_ERROR(FromYaml(root["data"], run.data));
  MIMO_RETURN_IF_ERROR(FromYaml(root["train"], run.train));
  MIMO_RETURN_IF_ERROR(FromYaml(root["optimizer"], run.optimizer));
  MIMO_RETURN_IF_ERROR(FromYaml(root["checkpoint"], run.checkpoint));
  MIMO_RETURN_IF_ERROR(FromYaml(root["logging"], run.logging));
  return run;
}

}  // namespace mimo
