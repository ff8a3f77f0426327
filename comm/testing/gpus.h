// The GPUs here, and ranks on them.
#ifndef MIMO_COMM_TESTING_GPUS_H_
#define MIMO_COMM_TESTING_GPUS_H_

#include <cuda_runtime.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "comm/rendezvous/job.h"
#include "gtest/gtest.h"

namespace mimo {

// Of one machine. Of more ranks than that, each so many are taken for another
// machine's (NCCL's NCCL_HOSTID): they share the GPUs, and NCCL joins machines
// by sockets.
inline int Gpus() {
  int gpus = 0;
  return cudaGetDeviceCount(&gpus) == cudaSuccess ? gpus : 0;
}

#define SKIP_BELOW_GPUS(wanted) \
  if (Gpus() < wanted)          \
  GTEST_SKIP() << "found " << Gpus() << " GPUs, wanted " << wanted

// This process's rank on one of them, whatever its number.
inline Job OnGpu(Job job) {
  job.local_rank = job.rank % Gpus();
  setenv("NCCL_HOSTID", absl::StrCat(job.rank / Gpus()).c_str(), 1);
  return job;
}

}  // namespace mimo

#endif  // MIMO_COMM_TESTING_GPUS_H_
