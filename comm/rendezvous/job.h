// Job: which process of which world this is, and how its processes meet.
#ifndef MIMO_COMM_RENDEZVOUS_JOB_H_
#define MIMO_COMM_RENDEZVOUS_JOB_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mimo {

struct Job {
  int rank = 0, world_size = 1;
  int local_rank = 0, local_world_size = 1;  // among this machine's processes
  // Where rank 0's store listens, and its key. Empty for a world of one.
  std::string host;
  int port = 0;
  std::string key;
};

// Read from the environment; one rank if it has none of
//
//   torchrun,       RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
//   `mimo launch`   MASTER_ADDR, MASTER_PORT. torchrun, known by its
//                   TORCHELASTIC_RUN_ID, listens on MASTER_PORT itself: under
//                   it the store takes MASTER_PORT + 1.
//   mpirun          OMPI_COMM_WORLD_{RANK, SIZE, LOCAL_RANK, LOCAL_SIZE}. On
//                   one machine 127.0.0.1 and a port that follows from
//                   PMIX_NAMESPACE or OMPI_MCA_ess_base_jobid; on several,
//                   MASTER_ADDR and MASTER_PORT are needed.
//   srun            SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID; the entry
//                   SLURM_NODEID of SLURM_STEP_TASKS_PER_NODE; the first host
//                   of SLURM_STEP_NODELIST or SLURM_JOB_NODELIST and a port
//                   that follows from SLURM_JOB_ID and SLURM_STEP_ID
//
// The first of these that is there counts, and MASTER_ADDR and MASTER_PORT win
// over what is derived. Derived ports lie in 20000 .. 31999, below those that
// Linux gives out.
//
// The store's key is what the file MIMO_STORE_KEY_FILE holds, or
// MIMO_STORE_KEY, which `mimo launch` sets; more than one rank need one.
//
// Errors (kInvalidArgument): variables that are no numbers, contradict each
// other, or lack their companions; no key.
absl::StatusOr<Job> JobFromEnvironment();

// The first host of a SLURM node list: "node01" of "node[01-04,7],x3".
absl::StatusOr<std::string> FirstSlurmHost(absl::string_view list);

}  // namespace mimo

#endif  // MIMO_COMM_RENDEZVOUS_JOB_H_
