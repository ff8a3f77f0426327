#include "mimo/nn/tensor_slice.h"

#include <algorithm>

#include "absl/log/check.h"
#include "absl/types/span.h"

namespace mimo {

std::vector<ParameterShard> WholeShards(
    const std::vector<Parameter*>& parameters) {
  std::vector<ParameterShard> shards;
  for (Parameter* parameter : parameters) {
    if (!parameter->frozen)
      shards.push_back({parameter, 0, parameter->data.numel()});
  }
  return shards;
}

TensorSlice SliceOf(const ParameterShard& shard, const Tensor& data) {
  const Parameter& parameter = *shard.parameter;
  // A parameter that no Module made is not sharded.
  const Shape& whole = parameter.sharding.shards.empty()
                           ? parameter.data.shape()
                           : parameter.whole;
  return {
      .data = data.numel() == NumElements(whole) ? data.Reshape(whole) : data,
      .whole = whole,
      .sharding = parameter.sharding,
      .begin = shard.begin,
      .copy = parameter.stage_copy > 0};
}

std::vector<SliceRun> RunsOf(const Shape& whole, const Sharding& sharding,
                             int64_t begin, int64_t size) {
  std::vector<SliceRun> runs;
  if (size == 0) return runs;
  const absl::Span<const int64_t> sizes = whole;
  // A row: one index of each dimension before the sharded one.
  const int dim = sharding.dim;
  const int64_t inner = whole.empty() ? 1 : NumElements(sizes.subspan(dim + 1));
  const int64_t length = whole.empty() ? 1 : whole[dim];
  const int64_t rows = whole.empty() ? 1 : NumElements(sizes.first(dim));
  std::vector<Shard> shards = sharding.shards;
  if (shards.empty()) shards = {{.begin = 0, .size = length}};
  int64_t row_size = 0;
  for (const Shard& shard : shards) {
    CHECK(shard.begin >= 0 && shard.begin + shard.size <= length)
        << shard.begin << " + " << shard.size << " of " << length;
    row_size += shard.size * inner;
  }
  const int64_t end = begin + size;
  CHECK(begin >= 0 && end <= rows * row_size)
      << "elements " << begin << " to " << end << " of " << rows * row_size;
  for (int64_t row = begin / row_size; row * row_size < end; ++row) {
    int64_t at_slice = row * row_size;
    for (const Shard& shard : shards) {
      const int64_t from = std::max(begin, at_slice);
      const int64_t to = std::min(end, at_slice + shard.size * inner);
      if (from < to) {
        const int64_t at =
            (row * length + shard.begin) * inner + from - at_slice;
        if (!runs.empty() && runs.back().at + runs.back().size == at) {
          runs.back().size += to - from;
        } else {
          runs.push_back({at, from - begin, to - from});
        }
      }
      at_slice += shard.size * inner;
    }
  }
  return runs;
}

}  // namespace mimo
