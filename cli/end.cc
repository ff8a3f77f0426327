#include "cli/end.h"

#include <cstdio>
#include <iostream>
#include <string>

#include "absl/strings/str_replace.h"
#include "comm/rendezvous/launcher.h"

namespace mimo {
namespace {

// What the world did wrong that the user can put right, against what failed.
bool UsersMistake(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

}  // namespace

int End(const absl::Status& status) {
  std::cout.flush();
  if (status.ok()) return 0;
  const std::string line = absl::StrReplaceAll(status.message(), {{"\n", " "}});
  // Without a message another rank says it.
  if (line.empty()) return kFailedAfterAnother;
  std::fprintf(stderr, "mimo: %s\n", line.c_str());
  return UsersMistake(status.code()) ? 2 : 1;
}

}  // namespace mimo
