// Many tensors as one list of blocks, shared out to threads. Blocks are fixed
// by the sizes alone, so neither a partial sum a block nor where a vector loop
// begins depends on the threads.
#ifndef MIMO_KERNELS_OPTIM_BLOCKS_H_
#define MIMO_KERNELS_OPTIM_BLOCKS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/base/parallel.h"

namespace mimo::kernels {

inline constexpr int64_t kBlockElements = 1 << 14;

template <typename Tensor>
int64_t CountBlocks(absl::Span<const Tensor> tensors) {
  int64_t blocks = 0;
  for (const Tensor& tensor : tensors)
    blocks += (tensor.size + kBlockElements - 1) / kBlockElements;
  return blocks;
}

// body(tensor, block, begin, end) for elements [begin, end) of each tensor;
// `block` counts over all tensors. Tensor has a member `size`.
template <typename Tensor, typename F>
void ForBlocks(absl::Span<const Tensor> tensors, F body) {
  struct Block {
    int64_t tensor, begin;
  };
  std::vector<Block> blocks;
  blocks.reserve(CountBlocks(tensors));
  for (int64_t t = 0; t < static_cast<int64_t>(tensors.size()); ++t) {
    for (int64_t i = 0; i < tensors[t].size; i += kBlockElements)
      blocks.push_back({t, i});
  }
  ParallelFor(blocks.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Tensor& tensor = tensors[blocks[b].tensor];
      body(tensor, b, blocks[b].begin,
           std::min(tensor.size, blocks[b].begin + kBlockElements));
    }
  });
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_OPTIM_BLOCKS_H_
