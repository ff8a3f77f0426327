#include "mimo/parallel/sum_over_ranks.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

absl::Status SumOverRanks(Communicator* group, Allocator& allocator,
                          absl::Span<double> values) {
  if (group == nullptr || group->size() == 1) return absl::OkStatus();
  const int64_t count = values.size();
  const Tensor sums = Tensor::From<double>(allocator, {count}, values);
  group->AllReduce(sums.data(), sums.data(), count, DType::kFloat64,
                   ReduceOp::kSum, allocator.stream());
  Allocator host;
  const Tensor read = sums.Clone(host);
  std::copy_n(read.span<double>().begin(), count, values.begin());
  return group->Health();
}

absl::Status AgreeOverRanks(Communicator* group, Allocator& allocator,
                            absl::Status status) {
  double failures = status.ok() ? 0 : 1;
  const absl::Status summed =
      SumOverRanks(group, allocator, absl::MakeSpan(&failures, 1));
  MIMO_RETURN_IF_ERROR(status);
  MIMO_RETURN_IF_ERROR(summed);
  if (failures == 0) return absl::OkStatus();
  return absl::AbortedError(
      absl::StrCat(failures, " of ", group->size(), " ranks failed"));
}

}  // namespace mimo
