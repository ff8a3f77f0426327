// The launcher: the local processes of a job, from their start to their end.
#ifndef MIMO_COMM_RENDEZVOUS_LAUNCHER_H_
#define MIMO_COMM_RENDEZVOUS_LAUNCHER_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace mimo {

// The exit code of a rank that ends because another one failed.
inline constexpr int kFailedAfterAnother = 3;

struct LaunchOptions {
  std::string program = "/proc/self/exe";  // this one
  std::vector<std::string> arguments;      // without the program's name
  int processes = 1;                       // of this machine
  // Of a job on several machines, with as many processes each. Where rank 0's
  // store is then to listen; of one machine it is 127.0.0.1 and a free port.
  int nodes = 1, node_rank = 0;
  std::string master_address;
  int master_port = 0;
  // From SIGTERM to SIGKILL, for the others when one has failed.
  absl::Duration grace = absl::Seconds(10);
};

// Runs the processes and returns when all have ended. Rank r gets RANK,
// WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and
// MIMO_STORE_KEY (random; of several machines the caller's own) in its
// environment, and its share of the CPUs as MIMO_THREADS if that is not set.
// What it prints appears line by line behind "[r] ".
//
// Each rank has a process group of its own. SIGINT, SIGTERM, SIGHUP, SIGQUIT,
// SIGUSR1 and SIGUSR2 go to all of them. When a rank fails, the others are
// ended. One that ends by kFailedAfterAnother leaves `grace` for the rank that
// failed to end by itself; what then still runs is the failure: it hangs. When
// this process itself is killed, the kernel kills them.
//
// Errors: kInvalidArgument when the first that failed ended with exit code 2,
// the code of a user's mistake, else kInternal; "rank 2 ended by signal 9".
absl::Status Launch(const LaunchOptions& options);

}  // namespace mimo

#endif  // MIMO_COMM_RENDEZVOUS_LAUNCHER_H_
