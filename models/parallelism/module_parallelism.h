// ModuleParallelismConfig: how one module is spread over ranks, and where they
// start. Plain data; the arithmetic needs no process.
//
//   model-parallel size   M = TP * CP * PP
//   ranks of the module   M * DP: [rank_offset, rank_offset + M * DP)
//   experts               factorise the same ranks anew, ETP * EP * expert DP
//                         * PP: they never enlarge the span
//
// Errors are a user's mistakes and read "<key>: <found>, <wanted>".
// Source: Megatron-Bridge, megatron_mimo_config.py (fields, rules, words).
#ifndef MIMO_MODELS_PARALLELISM_MODULE_PARALLELISM_H_
#define MIMO_MODELS_PARALLELISM_MODULE_PARALLELISM_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace mimo {

struct ModuleParallelismConfig {
  int tensor_model_parallel_size = 1;     // TP: ranks that share a layer
  bool sequence_parallel = false;         // SP: ... and its tokens
  int pipeline_model_parallel_size = 1;   // PP: stages
  int context_parallel_size = 1;          // CP: parts of a sequence
  int expert_model_parallel_size = 1;     // EP
  int expert_tensor_parallel_size = 1;    // ETP
  std::optional<int> data_parallel_size;  // DP: replicas; unset: to be derived
  int rank_offset = 0;                    // first global rank

  // M. Products here and below stop at 2^62.
  int64_t DenseModelParallelSize() const;
  // FailedPrecondition while DP is unset.
  absl::StatusOr<int64_t> TotalRanks() const;
  // The same; InvalidArgument when it does not come out whole.
  absl::StatusOr<int64_t> ExpertDataParallelSize() const;

  // Checks the sizes and sets an unset DP to world_size / M. On error nothing
  // has changed.
  absl::Status Finalize(std::optional<int> world_size);

  bool operator==(const ModuleParallelismConfig&) const = default;

  template <typename V>
  void Fields(V& v) {
    v("tensor_model_parallel_size", tensor_model_parallel_size);
    v("sequence_parallel", sequence_parallel);
    v("pipeline_model_parallel_size", pipeline_model_parallel_size);
    v("context_parallel_size", context_parallel_size);
    v("expert_model_parallel_size", expert_model_parallel_size);
    v("expert_tensor_parallel_size", expert_tensor_parallel_size);
    v("data_parallel_size", data_parallel_size);
    v("rank_offset", rank_offset);
  }
  // "TP2 CP1 PP2 DP4 EP1 ETP1 @0"; "TP2+SP", and an unset DP is "DP?".
  template <typename Sink>
  friend void AbslStringify(Sink& sink, const ModuleParallelismConfig& m) {
    absl::Format(
        &sink, "TP%d%s CP%d PP%d DP%s EP%d ETP%d @%d",
        m.tensor_model_parallel_size, m.sequence_parallel ? "+SP" : "",
        m.context_parallel_size, m.pipeline_model_parallel_size,
        m.data_parallel_size ? absl::StrCat(*m.data_parallel_size) : "?",
        m.expert_model_parallel_size, m.expert_tensor_parallel_size,
        m.rank_offset);
  }
};

}  // namespace mimo

#endif  // MIMO_MODELS_PARALLELISM_MODULE_PARALLELISM_H_
