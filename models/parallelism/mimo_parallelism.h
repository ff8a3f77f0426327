// MimoParallelismConfig: the parallelism of all modules of a model, and what
// must hold between them. The `parallelism:` section of a run.
//
//   homogeneous    all modules have the same sizes and all ranks
//   colocated      all modules have all ranks; sizes may differ, but PP is 1 of
//                  all but the language module
//   heterogeneous  each module has the ranks from its rank_offset on
//
// Relaxed unless strict_megatron_compat: a TP that is no power of two, DP sizes
// of which neither divides the other, CP, pipelined encoders and overlapping
// spans, which our bridges carry and Megatron's do not, and a pipelined
// language module in colocated mode. Ranks of no module are an error unless
// allow_idle_ranks (strict: always).
//
// Errors are a user's mistakes and begin with the key below `parallelism`.
// Source: Megatron-Bridge, megatron_mimo_config.py (order of checks, words).
#ifndef MIMO_MODELS_PARALLELISM_MIMO_PARALLELISM_H_
#define MIMO_MODELS_PARALLELISM_MIMO_PARALLELISM_H_

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "mimo/config/fields.h"
#include "models/parallelism/module_parallelism.h"
#include "models/parallelism/topology.h"

namespace mimo {

enum class DeploymentMode { kHomogeneous, kColocated, kHeterogeneous };
template <>
struct EnumNames<DeploymentMode> {
  static constexpr std::array<std::pair<DeploymentMode, absl::string_view>, 3>
      kNames = {{{DeploymentMode::kHomogeneous, "homogeneous"},
                 {DeploymentMode::kColocated, "colocated"},
                 {DeploymentMode::kHeterogeneous, "heterogeneous"}}};
};

// Ranks [begin, end).
struct RankSpan {
  int64_t begin = 0, end = 0;
  bool operator==(const RankSpan&) const = default;
};

struct MimoParallelismConfig {
  DeploymentMode deployment_mode = DeploymentMode::kHomogeneous;
  std::string llm_module_name = "language";
  // By name, in the order in which they were given: that of their groups.
  std::vector<std::pair<std::string, ModuleParallelismConfig>>
      module_parallelisms;
  std::map<std::string, int64_t> special_token_ids;  // of each modality
  // Of all modules; empty: each feeds the language module, which feeds none.
  Receivers topology;
  // Dimensions of what a module gives, where they are others than these: of
  // the language module 3, [B, S, H]; of the rest 2, [tokens, H].
  std::map<std::string, int> module_output_ndim;
  bool allow_idle_ranks = false;
  bool strict_megatron_compat = false;

  // Null when there is no such module.
  const ModuleParallelismConfig* Find(absl::string_view module) const;
  std::vector<std::string> ModuleNames() const;
  // The end of the last span, 0 without modules. As TotalRanks while a DP is
  // unset; so are the next two.
  absl::StatusOr<int64_t> TotalWorldSize() const;
  absl::StatusOr<RankSpan> Span(absl::string_view module) const;
  // Ranks below world_size of no module, ascending.
  absl::StatusOr<std::vector<RankSpan>> IdleRanks(int world_size) const;

  // Checks everything and sets the DP sizes that are unset. On error nothing
  // has changed; a second call for the same world changes nothing.
  absl::Status Finalize(int world_size);
  // Of what is accepted, as Megatron does, and has no effect.
  std::vector<std::string> Warnings() const;

  // The rest is for a finalized config.
  ModuleTopology Topology() const;
  std::map<std::string, int> OutputNdims() const;  // of all modules
  // Samples of a micro-batch of one replica of `module`, where one replica of
  // the language module has `micro_batch_size`: micro_batch_size * DP_language
  // / DP. An error if that is not whole.
  absl::StatusOr<int64_t> MicroBatchSize(absl::string_view module,
                                         int64_t micro_batch_size) const;
  // Micro-batches of an iteration: global_batch_size / (micro_batch_size *
  // DP_language), with the same error for every module, and for encoders of
  // which a CP rank, a lane of its own, would not have whole samples.
  absl::StatusOr<int64_t> MicroBatches(int64_t global_batch_size,
                                       int64_t micro_batch_size) const;

  bool operator==(const MimoParallelismConfig&) const = default;
  template <typename Sink>
  friend void AbslStringify(Sink& sink, const MimoParallelismConfig& config) {
    sink.Append(ToYaml(config));
  }
};

// The section `node`; finalized if `world_size` is given. Errors name file and
// dotted key.
absl::StatusOr<MimoParallelismConfig> ReadParallelism(
    const ConfigNode& node, std::optional<int> world_size);
ConfigNode ToNode(const MimoParallelismConfig& config);

}  // namespace mimo

#endif  // MIMO_MODELS_PARALLELISM_MIMO_PARALLELISM_H_
