#include "mimo/parallel/sum_over_ranks.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/device.h"
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

absl::StatusOr<std::vector<std::string>> GatherTexts(Communicator* group,
                                                     Allocator& allocator,
                                                     const std::string& text) {
  if (group == nullptr) return std::vector{text};
  Allocator host;
  const int64_t ranks = group->size(), size = text.size();
  const Tensor sizes(allocator, {ranks}, DType::kInt64);
  group->AllGather(Tensor::From<int64_t>(allocator, {1}, {size}).data(),
                   sizes.data(), 1, DType::kInt64, allocator.stream());
  const Tensor read_sizes = sizes.Clone(host);
  MIMO_RETURN_IF_ERROR(group->Health());
  const auto lengths = read_sizes.span<int64_t>();
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  if (longest == 0) return std::vector<std::string>(ranks);
  const Tensor all(allocator, {ranks, longest}, DType::kUInt8);
  char* const own = static_cast<char*>(all.data()) + group->rank() * longest;
  CopyBytes(own, text.data(), size, allocator.stream());
  group->AllGather(own, all.data(), longest, DType::kUInt8, allocator.stream());
  const Tensor read = all.Clone(host);
  MIMO_RETURN_IF_ERROR(group->Health());
  std::vector<std::string> texts;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    texts.emplace_back(static_cast<const char*>(read.data()) + rank * longest,
                       lengths[rank]);
  }
  return texts;
}

absl::Status AgreeOverRanks(Communicator* group, Allocator& allocator,
                            absl::Status status) {
  // A character for the code, and the message.
  std::string text(status.message());
  if (!status.ok()) text.insert(0, 1, static_cast<char>(status.code()));
  const auto texts = GatherTexts(group, allocator, text);
  status.Update(texts.status());
  if (!texts.ok()) return status;
  for (const std::string& one : *texts) {
    if (one.empty()) continue;
    return absl::Status(static_cast<absl::StatusCode>(one[0]), one.substr(1));
  }
  return absl::OkStatus();
}

}  // namespace mimo
