#include "comm/nccl/nccl_control.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/status_macros.h"

namespace mimo {

absl::Status ToStatus(ncclResult_t result, const std::string& what) {
  if (result == ncclSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(what, ": NCCL: ", ncclGetErrorString(result), "; ",
                   ncclGetLastError(nullptr));
  return result == ncclRemoteError ? absl::UnavailableError(message)
                                   : absl::InternalError(message);
}

ncclConfig_t NcclConfig(bool blocking) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = blocking;
  return config;
}

void NcclControl::Ask(ncclResult_t* state) {
  if (const ncclResult_t asked = ncclCommGetAsyncError(comm_, state);
      asked != ncclSuccess)
    *state = asked;
}

absl::Status NcclControl::Await(ncclResult_t begun, const std::string& what,
                                absl::FunctionRef<bool()> given_up) {
  const absl::Time deadline = absl::Now() + timeout_;
  // A split returns ncclSuccess although it is in progress (NCCL 2.28).
  ncclResult_t state = begun;
  if (begun == ncclSuccess) Ask(&state);
  while (state == ncclInProgress) {
    if (given_up()) return absl::AbortedError(absl::StrCat(what, ": aborted"));
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(what, ": not all ranks came within ",
                       absl::FormatDuration(timeout_)));
    }
    absl::SleepFor(absl::Microseconds(200));
    Ask(&state);
  }
  return ToStatus(state, what);
}

absl::StatusOr<ncclComm_t> NcclControl::Split(
    int color, int key, const std::string& what,
    absl::FunctionRef<bool()> given_up) {
  ncclConfig_t config = NcclConfig(/*blocking=*/true);
  ncclComm_t part = nullptr;
  MIMO_RETURN_IF_ERROR(
      Await(ncclCommSplit(comm_, color, key, &part, &config), what, given_up));
  return part;
}

}  // namespace mimo
