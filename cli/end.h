// How a command ends.
#ifndef MIMO_CLI_END_H_
#define MIMO_CLI_END_H_

#include "absl/status/status.h"

namespace mimo {

// Prints what is left to print, and why the command failed if it did; the exit
// code.
int End(const absl::Status& status);

}  // namespace mimo

#endif  // MIMO_CLI_END_H_
