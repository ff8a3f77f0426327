// Bridges of every small layout, against what a bridge is defined to deliver.
#ifndef MIMO_COMM_TESTING_CHECK_BRIDGES_H_
#define MIMO_COMM_TESTING_CHECK_BRIDGES_H_

#include "absl/status/status.h"
#include "comm/base/communicator.h"
#include "kernels/base/stream.h"

namespace mimo {

// Called by every rank of a world. All modules of [dp, cp, tp] on consecutive
// ranks of it, each as the source of each, by every routing that joins them,
// with even, uneven and empty lanes, batch axis first or not, and a large
// payload; forward, backward and both at once; each bit compared. Error: this
// rank's first difference.
absl::Status CheckBridges(Communicator& world, Stream stream);

}  // namespace mimo

#endif  // MIMO_COMM_TESTING_CHECK_BRIDGES_H_
