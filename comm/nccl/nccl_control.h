// NcclControl: a communicator of NCCL that only sets up others.
#ifndef MIMO_COMM_NCCL_NCCL_CONTROL_H_
#define MIMO_COMM_NCCL_NCCL_CONTROL_H_

#include <nccl.h>

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace mimo {

// `what` begins the message.
absl::Status ToStatus(ncclResult_t result, const std::string& what);

ncclConfig_t NcclConfig(bool blocking);

// Non-blocking: its calls return at once and are waited for with a timeout.
class NcclControl {
 public:
  NcclControl(ncclComm_t comm, absl::Duration timeout)
      : comm_(comm), timeout_(timeout) {}
  // It carries no data, so there is nothing to wait for.
  ~NcclControl() { ncclCommAbort(comm_); }
  NcclControl(const NcclControl&) = delete;
  NcclControl& operator=(const NcclControl&) = delete;

  // Waits until the call that returned `begun` is done, or given_up().
  absl::Status Await(ncclResult_t begun, const std::string& what,
                     absl::FunctionRef<bool()> given_up);

  // The blocking communicator of the ranks of one color, or null for
  // NCCL_SPLIT_NOCOLOR.
  absl::StatusOr<ncclComm_t> Split(int color, int key, const std::string& what,
                                   absl::FunctionRef<bool()> given_up);

 private:
  // The state of what was begun last.
  void Ask(ncclResult_t* state);

  const ncclComm_t comm_;
  const absl::Duration timeout_;
};

}  // namespace mimo

#endif  // MIMO_COMM_NCCL_NCCL_CONTROL_H_
