// Random parallelism configs for tests.
#ifndef MIMO_MODELS_PARALLELISM_RANDOM_CONFIG_H_
#define MIMO_MODELS_PARALLELISM_RANDOM_CONFIG_H_

#include <random>
#include <string>
#include <vector>

#include "models/parallelism/mimo_parallelism.h"

namespace mimo {

inline constexpr DeploymentMode kModes[] = {DeploymentMode::kHomogeneous,
                                            DeploymentMode::kColocated,
                                            DeploymentMode::kHeterogeneous};

struct Draw {
  std::mt19937 bits;
  int Below(int end) { return std::uniform_int_distribution(0, end - 1)(bits); }
  bool OneIn(int n) { return Below(n) == 0; }
  int Size() { return std::vector{1, 1, 1, 2, 2, 3, 4}[Below(7)]; }
};

// Mostly right: spans touch, shared spans are of equal sizes. Each rule of
// Finalize is broken now and then.
inline MimoParallelismConfig RandomConfig(Draw& draw, int& world) {
  MimoParallelismConfig config;
  config.deployment_mode = kModes[draw.Below(3)];
  config.strict_megatron_compat = draw.OneIn(3);
  config.allow_idle_ranks = draw.OneIn(3);
  const bool heterogeneous =
      config.deployment_mode == DeploymentMode::kHeterogeneous;
  world = heterogeneous ? 0 : 1 + draw.Below(12);
  ModuleParallelismConfig m;
  for (const char* name : {"images", "language", "audios"}) {
    if (draw.OneIn(8)) continue;
    if (config.deployment_mode != DeploymentMode::kHomogeneous ||
        config.module_parallelisms.empty() || draw.OneIn(10)) {
      m = {.tensor_model_parallel_size = draw.Size(),
           .sequence_parallel = draw.OneIn(8),
           .pipeline_model_parallel_size =
               config.deployment_mode == DeploymentMode::kColocated &&
                       name != config.llm_module_name && !draw.OneIn(8)
                   ? 1
                   : draw.Size(),
           .context_parallel_size = draw.OneIn(4) ? 2 : 1,
           .expert_model_parallel_size = draw.OneIn(8) ? draw.Size() : 1,
           .expert_tensor_parallel_size = draw.OneIn(8) ? draw.Size() : 1};
    }
    m.rank_offset = heterogeneous ? world : 0;
    m.data_parallel_size.reset();
    if (heterogeneous ? !draw.OneIn(20) : draw.OneIn(8)) {
      m.data_parallel_size = draw.Size();
    }
    if (draw.OneIn(12)) m.rank_offset += draw.Below(4) - 2;
    if (draw.OneIn(40)) {
      int* const sizes[] = {
          &m.tensor_model_parallel_size, &m.pipeline_model_parallel_size,
          &m.context_parallel_size, &m.expert_model_parallel_size,
          &m.expert_tensor_parallel_size};
      *sizes[draw.Below(5)] = -draw.Below(2);
    } else if (draw.OneIn(60)) {
      m.data_parallel_size = -draw.Below(2);
    }
    if (heterogeneous) {
      world = m.rank_offset +
              m.DenseModelParallelSize() * m.data_parallel_size.value_or(1);
    }
    config.module_parallelisms.emplace_back(name, m);
  }
  if (draw.OneIn(10)) world += draw.Below(5) - 2;
  if (draw.OneIn(5)) {  // at times with a cycle, or without a module
    for (const std::string& a : config.ModuleNames()) {
      std::vector<std::string>& receivers = config.topology[a];
      for (const std::string& b : config.ModuleNames()) {
        if (draw.OneIn(a < b ? 2 : 20)) receivers.push_back(b);
      }
    }
    if (draw.OneIn(10)) config.topology.erase("images");
  }
  if (draw.OneIn(5)) config.module_output_ndim["images"] = 1 + draw.Below(4);
  return config;
}

}  // namespace mimo

#endif  // MIMO_MODELS_PARALLELISM_RANDOM_CONFIG_H_
