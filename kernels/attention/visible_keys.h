// Which keys a query sees: always a prefix, as padding and the causal mask both
// hide a suffix.
#ifndef MIMO_KERNELS_ATTENTION_VISIBLE_KEYS_H_
#define MIMO_KERNELS_ATTENTION_VISIBLE_KEYS_H_

#include <algorithm>
#include <cstdint>

#include "kernels/attention/attention.h"

namespace mimo::kernels {

// How many keys query i of sample b sees; grows with i.
inline int64_t VisibleKeys(const AttentionShape& shape,
                           const int32_t* key_lengths, int64_t b, int64_t i) {
  int64_t keys = shape.seq_k;
  if (key_lengths != nullptr) keys = std::min<int64_t>(keys, key_lengths[b]);
  if (shape.causal) keys = std::min(keys, i + shape.seq_k - shape.seq_q + 1);
  return std::max<int64_t>(keys, 0);
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ATTENTION_VISIBLE_KEYS_H_
