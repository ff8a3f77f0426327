#include "models/infra/module_comm.h"

#include "absl/log/check.h"

namespace mimo {

BridgePayload BridgeConfig::Payload(absl::Span<const int64_t> shape,
                                    DType dtype) const {
  CHECK_EQ(static_cast<int>(shape.size()), tensor_ndim) << source;
  BridgePayload payload{.dtype = dtype};
  for (int axis = 0; axis < tensor_ndim; ++axis) {
    if (axis < batch_axis()) payload.outer *= shape[axis];
    if (axis > batch_axis()) payload.inner *= shape[axis];
  }
  return payload;
}

}  // namespace mimo
