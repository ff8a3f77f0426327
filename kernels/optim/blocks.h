// The CPU's loop over a TensorList.
#ifndef MIMO_KERNELS_OPTIM_BLOCKS_H_
#define MIMO_KERNELS_OPTIM_BLOCKS_H_

#include <algorithm>
#include <cstdint>

#include "kernels/base/parallel.h"
#include "kernels/optim/tensor_list.h"

namespace mimo::kernels {

// body(tensor, block, begin, end) for elements [begin, end) of each tensor;
// `block` counts over all tensors.
template <typename F>
void ForBlocks(const TensorList& list, F body) {
  ParallelFor(list.num_blocks(), 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const TensorBlock& block = list.blocks()[b];
      const AdamWTensor& tensor = list.tensors()[block.tensor];
      body(tensor, b, block.begin,
           std::min(tensor.size, block.begin + kBlockElements));
    }
  });
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_OPTIM_BLOCKS_H_
