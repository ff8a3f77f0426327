#include "mimo/autograd/ops/bridge_rows.h"

#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

struct BridgeRowsNode final : Node {
  Slot x_slot, out_slot;
  Bridge* bridge;
  BridgePayload payload;
  Shape x_shape, out_shape;

  const char* name() const override { return "BridgeRows"; }
  void Backward(BackwardContext& ctx) override {
    Tensor dout = ctx.Take(out_slot);
    if (!dout.defined()) {  // other ranks may have a gradient for this one
      dout = ctx.exec().Empty(out_shape, payload.dtype);
      dout.Zero();
    }
    const auto dx = ctx.GradFor(x_slot, x_shape, payload.dtype);
    CHECK(!dx.accumulate) << "BridgeRows must be the rows' only user";
    // The payload was good in the forward.
    CHECK_OK(bridge->Backward({payload, dout.data(), dx.buffer.data()},
                              ctx.exec().compute));
  }
};

}  // namespace

absl::StatusOr<Var> BridgeRows(const Context& ctx, Bridge& bridge,
                               const BridgePayload& payload, const Var& x,
                               int64_t m) {
  CHECK(x.value.dtype() == payload.dtype && x.value.dim(1) == payload.inner);
  Var out{ctx.Empty({m, payload.inner}, payload.dtype)};
  MIMO_RETURN_IF_ERROR(
      bridge.Forward({payload, x.value.data(), out.value.data()}, ctx.compute));
  if (ctx.tape == nullptr || !x.needs_grad()) return out;
  auto node = std::make_unique<BridgeRowsNode>();
  node->x_slot = x.slot;
  node->out_slot = out.slot = ctx.tape->NewSlot();
  node->bridge = &bridge;
  node->payload = payload;
  node->x_shape = x.value.shape();
  node->out_shape = out.value.shape();
  ctx.tape->Append(std::move(node));
  return out;
}

}  // namespace mimo
