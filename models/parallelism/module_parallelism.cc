#include "models/parallelism/module_parallelism.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/string_view.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// Of positive sizes, at most 2^62: what is larger is larger than any world.
int64_t Product(std::initializer_list<int64_t> sizes) {
  constexpr int64_t kMax = int64_t{1} << 62;
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product)) return kMax;
  }
  return std::min(product, kMax);
}

absl::Status CheckSizes(const ModuleParallelismConfig& m) {
  for (const auto& [name, size] :
       {std::pair<absl::string_view, int>("tensor_model_parallel_size",
                                          m.tensor_model_parallel_size),
        {"pipeline_model_parallel_size", m.pipeline_model_parallel_size},
        {"context_parallel_size", m.context_parallel_size},
        {"expert_model_parallel_size", m.expert_model_parallel_size},
        {"expert_tensor_parallel_size", m.expert_tensor_parallel_size},
        {"data_parallel_size", m.data_parallel_size.value_or(1)}}) {
    if (size <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": ", size, ", ", name, " must be positive"));
    }
  }
  if (m.sequence_parallel && m.tensor_model_parallel_size == 1) {
    return absl::InvalidArgumentError(
        "sequence_parallel: true, wanted false with tensor_model_parallel_size "
        "1: it shares tokens out to tensor-parallel ranks");
  }
  if (m.rank_offset < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rank_offset: ", m.rank_offset, ", rank_offset must be non-negative"));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t ModuleParallelismConfig::DenseModelParallelSize() const {
  return Product({tensor_model_parallel_size, context_parallel_size,
                  pipeline_model_parallel_size});
}

absl::StatusOr<int64_t> ModuleParallelismConfig::TotalRanks() const {
  if (!data_parallel_size) {
    return absl::FailedPreconditionError(
        "data_parallel_size: unset, data_parallel_size must be set before "
        "accessing total_ranks");
  }
  return Product({DenseModelParallelSize(), *data_parallel_size});
}

absl::StatusOr<int64_t> ModuleParallelismConfig::ExpertDataParallelSize()
    const {
  if (!data_parallel_size) {
    return absl::FailedPreconditionError(
        "data_parallel_size: unset, data_parallel_size must be set before "
        "accessing expert_data_parallel_size");
  }
  MIMO_ASSIGN_OR_RETURN(const int64_t ranks, TotalRanks());
  const int64_t expert =
      Product({expert_tensor_parallel_size, expert_model_parallel_size,
               pipeline_model_parallel_size});
  if (ranks % expert != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expert_model_parallel_size: ", expert_model_parallel_size,
        ", total_ranks must be divisible by expert_tensor_parallel_size * "
        "expert_model_parallel_size * pipeline_model_parallel_size (",
        ranks, " by ", expert, ")"));
  }
  return ranks / expert;
}

absl::Status ModuleParallelismConfig::Finalize(std::optional<int> world_size) {
  MIMO_RETURN_IF_ERROR(CheckSizes(*this));
  int data = data_parallel_size.value_or(0);
  if (!data_parallel_size) {
    if (world_size.value_or(0) <= 0) {
      return absl::InvalidArgumentError(
          "data_parallel_size: unset, world_size must be provided to compute "
          "data_parallel_size");
    }
    const int64_t model = DenseModelParallelSize();
    if (*world_size % model != 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "data_parallel_size: unset, world_size (%d) is not divisible by "
          "total_model_parallel_size (%d)",
          *world_size, model));
    }
    data = *world_size / model;
  }
  const int64_t dense =
      Product({tensor_model_parallel_size, context_parallel_size, data});
  if (dense %
          Product({expert_tensor_parallel_size, expert_model_parallel_size}) !=
      0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: TP * CP * DP must be divisible by expert_tensor_parallel_size * "
        "expert_model_parallel_size, found TP=%d, CP=%d, DP=%d, ETP=%d, EP=%d",
        expert_tensor_parallel_size > 1 ? "expert_tensor_parallel_size"
                                        : "expert_model_parallel_size",
        tensor_model_parallel_size, context_parallel_size, data,
        expert_tensor_parallel_size, expert_model_parallel_size));
  }
  data_parallel_size = data;
  return absl::OkStatus();
}

}  // namespace mimo
