// Rows of one module as the rows of another that is spread otherwise: a bridge,
// differentiable.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_BRIDGE_ROWS_H_
#define MIMO_MIMO_AUTOGRAD_OPS_BRIDGE_ROWS_H_

#include "absl/status/statusor.h"
#include "comm/bridge/bridge.h"
#include "mimo/autograd/tape.h"

namespace mimo {

// This rank, which is on both sides of `bridge`, gives its source lane and
// takes its destination lane. x [n, H], n and m as the payload says of the
// lanes; x must have no other user. -> [m, H]
//
// Called by all ranks of the bridge, with the same payload, x of all or of none
// wanting a gradient; so is the backward. Errors: the bridge's.
absl::StatusOr<Var> BridgeRows(const Context& ctx, Bridge& bridge,
                               const BridgePayload& payload, const Var& x,
                               int64_t m);

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_BRIDGE_ROWS_H_
