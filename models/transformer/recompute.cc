#include "models/transformer/recompute.h"

#include "absl/log/log.h"

namespace mimo {

KeptElements KeptByLayer(const LayerSizes& sizes, Recompute recompute,
                         bool frozen) {
  const int64_t h = sizes.hidden;
  const int64_t heads = 2 * (sizes.heads + sizes.kv_heads) * sizes.head_dim;
  switch (recompute) {
    case Recompute::kOff: {
      const int64_t wide = 1 + sizes.gated + !frozen;  // tensors of F
      return {(frozen ? 2 : 4) * h, heads + wide * sizes.ffn};
    }
    case Recompute::kSelective:
      return {(frozen ? 2 : 3) * h, heads};
    case Recompute::kFull:
      return {2 * h, 0};
  }
  LOG(FATAL) << "recompute " << static_cast<int>(recompute);
}

}  // namespace mimo
