// mimo launch: runs a command as the ranks of a job on this machine.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "comm/rendezvous/launcher.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr int64_t kMaxProcesses = 1024, kMaxNodes = 1 << 20;

absl::StatusOr<int> IntBetween(const Args& args, const std::string& flag,
                               int64_t low, int64_t high, int64_t otherwise) {
  MIMO_ASSIGN_OR_RETURN(const int64_t value, args.Int(flag, otherwise));
  if (value >= low && value <= high) return static_cast<int>(value);
  return absl::InvalidArgumentError(absl::StrCat(
      "launch: --", flag, ": ", value, ", wanted ", low, " to ", high));
}

// The flags for a job on several machines.
absl::Status ReadMachines(const Args& args, LaunchOptions& options) {
  MIMO_ASSIGN_OR_RETURN(options.nodes,
                        IntBetween(args, "nnodes", 1, kMaxNodes, 1));
  if (options.nodes == 1) return absl::OkStatus();
  MIMO_RETURN_IF_ERROR(args.Required("node-rank").status());
  MIMO_ASSIGN_OR_RETURN(options.node_rank,
                        IntBetween(args, "node-rank", 0, options.nodes - 1, 0));
  MIMO_ASSIGN_OR_RETURN(options.master_address, args.Required("master-addr"));
  MIMO_ASSIGN_OR_RETURN(options.master_port,
                        IntBetween(args, "master-port", 1, 65535, 29500));
  for (const char* name : {"MIMO_STORE_KEY_FILE", "MIMO_STORE_KEY"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "launch: --nnodes: ", options.nodes,
      " machines without a shared secret, wanted MIMO_STORE_KEY_FILE to name "
      "a file with one on each (head -c 32 /dev/urandom | base64 > FILE)"));
}

}  // namespace

absl::Status RunLaunch(const Words& words, const ModuleRegistry& registry) {
  Args args("launch", "starts a command as several ranks of this machine");
  args.Flag("nproc", "N", "processes on this machine; needed");
  args.Flag("nnodes", "N", "machines, each with --nproc processes (1)");
  args.Flag("node-rank", "N", "which of them this is, from 0");
  args.Flag("master-addr", "HOST", "the first machine's name");
  args.Flag("master-port", "PORT", "of rank 0's store there (29500)");
  const auto dashes = std::find(words.begin(), words.end(), "--");
  MIMO_RETURN_IF_ERROR(args.Parse({words.begin(), dashes}));
  if (args.PrintsHelp()) {
    std::cout << "  -- train ...                 what each process runs\n";
    return absl::OkStatus();
  }
  LaunchOptions options;
  MIMO_RETURN_IF_ERROR(args.Required("nproc").status());
  MIMO_ASSIGN_OR_RETURN(options.processes,
                        IntBetween(args, "nproc", 1, kMaxProcesses, 1));
  MIMO_RETURN_IF_ERROR(ReadMachines(args, options));
  if (dashes != words.end()) {
    options.arguments.assign(dashes + 1, words.end());
  }
  const std::string command =
      options.arguments.empty() ? "" : options.arguments[0];
  if (command != "train") {
    return absl::InvalidArgumentError(
        absl::StrCat("launch: command \"", command,
                     "\", wanted train behind the flags: -- train ..."));
  }
  MIMO_RETURN_IF_ERROR(
      CheckTrainFlags({options.arguments.begin() + 1, options.arguments.end()},
                      options.nodes * options.processes));
  const absl::Status status = Launch(options);
  return absl::Status(status.code(),
                      absl::StrCat("launch: ", status.message()));
}

}  // namespace mimo
