// TensorSlice: the part of a parameter, or of an optimizer's state for it, that
// one rank holds.
//
// Two cuts, one after the other: tensor parallelism gives a rank the shards of
// one dimension (Sharding); the optimizer's sharding gives it a range of those
// elements, row-major (ParameterShard).
#ifndef MIMO_MIMO_NN_TENSOR_SLICE_H_
#define MIMO_MIMO_NN_TENSOR_SLICE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mimo/nn/parameter.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

// Elements [begin, end) of a rank's part of a parameter.
struct ParameterShard {
  Parameter* parameter;
  int64_t begin, end;
};

// All elements of the parameters that are not frozen.
std::vector<ParameterShard> WholeShards(
    const std::vector<Parameter*>& parameters);

struct TensorSlice {
  Tensor data;        // the elements
  Shape whole;        // of the tensor
  Sharding sharding;  // no shards: all of it
  int64_t begin = 0;  // the first of `data` in those
  bool copy = false;  // another rank has and saves it too
};

// By the tensors' names.
using SliceMap = std::map<std::string, TensorSlice>;

// `data`, an element for each of the shard's; of a whole tensor it gets that
// one's shape.
TensorSlice SliceOf(const ParameterShard& shard, const Tensor& data);

// Elements [at, at + size) of the whole are [from, from + size) of the slice.
struct SliceRun {
  int64_t at, from, size;
};

// All elements of a slice of `size`, `from` ascending, in few runs.
std::vector<SliceRun> RunsOf(const Shape& whole, const Sharding& sharding,
                             int64_t begin, int64_t size);

}  // namespace mimo

#endif  // MIMO_MIMO_NN_TENSOR_SLICE_H_
