// Job: which process of which world this is, and how its processes meet.
#ifndef MIMO_COMM_RENDEZVOUS_JOB_H_
#define MIMO_COMM_RENDEZVOUS_JOB_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "comm/rendezvous/store.h"

namespace mimo {

struct Job {
  int rank = 0, world_size = 1;
  int local_rank = 0, local_world_size = 1;  // among this machine's processes
  std::string host;                          // where rank 0's store listens
  int port = 0;
  std::string key;  // the store's
};

// Read from the environment of torchrun or `mimo launch` (RANK, WORLD_SIZE,
// LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT), srun (SLURM_*) or
// mpirun (OMPI_*); one rank if there is none of them. The store's key comes
// from the file MIMO_STORE_KEY_FILE, or from MIMO_STORE_KEY, which the launcher
// sets. Errors: variables that are not numbers, contradict each other, or lack
// their companions.
absl::StatusOr<Job> JobFromEnvironment();

}  // namespace mimo

#endif  // MIMO_COMM_RENDEZVOUS_JOB_H_
