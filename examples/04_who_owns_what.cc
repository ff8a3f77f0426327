// Eight ranks in one process: an encoder on four of them, a language model of
// two pipeline stages on the others. Each rank says which modules it owns and
// who is with it in their groups.
//
//   bazel run //examples:04_who_owns_what
#include <cstdio>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "comm/inproc/inproc.h"
#include "models/llava/llava_provider.h"
#include "models/mimo_model/model_placement.h"

namespace {

std::string Group(const char* name, const mimo::Communicator* group) {
  if (group == nullptr || group->size() == 1) return "";
  return absl::StrCat("  ", name, " [", absl::StrJoin(group->members(), ","),
                      "]");
}

// What one rank knows.
std::string Describe(const mimo::MimoInfra& infra, const mimo::RankRole& role,
                     int rank) {
  std::string lines;
  for (const std::string& name : infra.participating_modules) {
    const mimo::ProcessGroupCollection& groups = *infra.pg_collections.at(name);
    absl::StrAppend(&lines, "rank ", rank, "  ", name,
                    role.IsFirstStage(name) ? "  first stage" : "",
                    role.IsLastStage(name) ? "  last stage" : "",
                    Group("tp", groups.tp), Group("dp", groups.dp),
                    Group("pp", groups.pp), Group("embd", groups.embd), "\n");
  }
  return lines;
}

}  // namespace

int main() {
  const mimo::MimoParallelismConfig parallelism{
      .deployment_mode = mimo::DeploymentMode::kHeterogeneous,
      .module_parallelisms = {
          {"images",
           {.tensor_model_parallel_size = 2, .data_parallel_size = 2}},
          {"language",
           {.tensor_model_parallel_size = 2,
            .pipeline_model_parallel_size = 2,
            .data_parallel_size = 1,
            .rank_offset = 4}}}};
  std::vector<std::string> owned(8);  // by rank
  const std::vector<absl::Status> results =
      mimo::RunRanks(8, [&](mimo::Communicator& world) -> absl::Status {
        const mimo::LlavaConfig config;  // Vicuna-7B and CLIP ViT-L/14-336
        auto provider = mimo::LlavaMimoProvider::Create(
            config, mimo::ModuleSpec("clip_vit", config.vision), parallelism);
        if (!provider.ok()) return provider.status();
        // Grids and groups: no weight is made.
        const auto infra = provider->BuildInfra(&world);
        if (!infra.ok()) return infra.status();
        const auto placement = mimo::PlaceModel(*infra, world.rank());
        if (!placement.ok()) return placement.status();
        owned[world.rank()] = Describe(**infra, placement->role, world.rank());
        return absl::OkStatus();
      });
  bool all = true;
  for (const absl::Status& status : results) {
    if (status.ok()) continue;
    std::printf("%s\n", status.ToString().c_str());
    all = false;
  }
  for (const std::string& lines : owned) std::printf("%s", lines.c_str());
  return all ? 0 : 1;
}
