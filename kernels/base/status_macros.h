// Early return on errors; absl has the types but not these.
#ifndef MIMO_KERNELS_BASE_STATUS_MACROS_H_
#define MIMO_KERNELS_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define MIMO_RETURN_IF_ERROR(expr)                            \
  do {                                                        \
    if (absl::Status mimo_status = (expr); !mimo_status.ok()) \
      return mimo_status;                                     \
  } while (false)

#define MIMO_CONCAT_INNER(a, b) a##b
#define MIMO_CONCAT(a, b) MIMO_CONCAT_INNER(a, b)

// MIMO_ASSIGN_OR_RETURN(auto x, F()): x = *F(), or return F()'s error.
#define MIMO_ASSIGN_OR_RETURN(lhs, expr) \
  MIMO_ASSIGN_OR_RETURN_IMPL(MIMO_CONCAT(mimo_or_, __LINE__), lhs, expr)
#define MIMO_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                               \
  if (!tmp.ok()) return std::move(tmp).status();   \
  lhs = *std::move(tmp)

#endif  // MIMO_KERNELS_BASE_STATUS_MACROS_H_
