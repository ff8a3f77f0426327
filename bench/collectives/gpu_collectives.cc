// gpu_collectives [--max-bytes N] [--seconds S]
//
// Every operation of comm, and bridges, on this machine's GPUs, a process each,
// in bfloat16, beside the same loop of plain NCCL calls on a blocking
// communicator of its own. docs/perf/collectives.md says what the columns mean.
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "absl/log/globals.h"
#include "absl/log/initialize.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "bench/collectives/bridges.h"
#include "bench/collectives/measure.h"
#include "comm/nccl/nccl_communicator.h"
#include "comm/testing/rank_processes.h"
#include "kernels/base/device.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

void Check(ncclResult_t result) {
  CHECK_EQ(result, ncclSuccess) << ncclGetErrorString(result);
}

// As a program that knows nothing of mimo would connect.
absl::StatusOr<ncclComm_t> ConnectPlain(const Job& job, Store& store) {
  ncclUniqueId id;
  if (job.rank == 0) {
    Check(ncclGetUniqueId(&id));
    MIMO_RETURN_IF_ERROR(
        store.Set("plain", std::string(id.internal, sizeof id.internal)));
  } else {
    MIMO_ASSIGN_OR_RETURN(const std::string bytes,
                          store.Get("plain", absl::Seconds(60)));
    bytes.copy(id.internal, sizeof id.internal);
  }
  ncclComm_t comm;
  Check(ncclCommInitRank(&comm, job.world_size, id, job.rank));
  return comm;
}

void RunPlain(ncclComm_t comm, int rank, int ranks, Collective what,
              const void* send, void* recv, int64_t count,
              cudaStream_t stream) {
  constexpr ncclDataType_t kType = ncclBfloat16;
  switch (what) {
    case Collective::kAllReduce:
      return Check(
          ncclAllReduce(send, recv, count, kType, ncclSum, comm, stream));
    case Collective::kAllGather:
      return Check(ncclAllGather(send, recv, count, kType, comm, stream));
    case Collective::kReduceScatter:
      return Check(
          ncclReduceScatter(send, recv, count, kType, ncclSum, comm, stream));
    case Collective::kBroadcast:
      return Check(ncclBroadcast(recv, recv, count, kType, 0, comm, stream));
    case Collective::kAllToAll:
      return Check(ncclAlltoAll(send, recv, count, kType, comm, stream));
    case Collective::kSendRecv:
      if (rank % 2 == 1)
        Check(ncclRecv(recv, count, kType, rank - 1, comm, stream));
      else if (rank + 1 < ranks)
        Check(ncclSend(send, count, kType, rank + 1, comm, stream));
      return;
    case Collective::kExchange:
      Check(ncclGroupStart());
      Check(ncclSend(send, count, kType, (rank + 1) % ranks, comm, stream));
      Check(ncclRecv(recv, count, kType, (rank + ranks - 1) % ranks, comm,
                     stream));
      return Check(ncclGroupEnd());
    case Collective::kBarrier:
      Check(ncclAllReduce(recv, recv, 1, kType, ncclSum, comm, stream));
      CHECK_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      return;
  }
}

double Number(const char* name, double otherwise) {
  const char* value = std::getenv(name);
  double number = otherwise;
  CHECK(value == nullptr || absl::SimpleAtod(value, &number)) << name;
  return number;
}

absl::Status Body(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(const auto world, ConnectNccl(job, store));
  MIMO_ASSIGN_OR_RETURN(const ncclComm_t comm, ConnectPlain(job, store));
  const Stream stream = NewStream(Device::kCuda);
  TableOptions options = {.dtype = DType::kBFloat16,
                          .seconds = Number("SECONDS_A_LINE", 0.1)};
  const int64_t most = Number("MAX_BYTES", 1 << 30);
  for (int64_t bytes : {1 << 10, 16 << 10, 256 << 10, 1 << 20, 16 << 20,
                        64 << 20, 256 << 20, 1 << 30})
    if (bytes <= most) options.bytes.push_back(bytes);
  const Contender contenders[] = {
      {"mimo", OperationsOf(*world)},
      {"NCCL", [&](Collective what, const void* send, void* recv, int64_t count,
                   DType, Stream stream) {
         RunPlain(comm, job.rank, job.world_size, what, send, recv, count,
                  static_cast<cudaStream_t>(stream.raw));
       }}};
  if (job.rank == 0) {
    int version;
    Check(ncclGetVersion(&version));
    std::cout << job.world_size << " x " << DeviceName(Device::kCuda)
              << ", NCCL " << version << ", bfloat16" << std::endl;
  }
  MIMO_RETURN_IF_ERROR(PrintTable(*world, stream, options, contenders));
  ncclCommDestroy(comm);
  return job.world_size % 2 == 0 ? PrintBridgeTable(*world, stream, options)
                                 : absl::OkStatus();
}

}  // namespace
}  // namespace mimo

int main(int argc, char** argv) {
  absl::InitializeLog();
  mimo::RunRankIfAsked({{"bench", mimo::Body}});
  std::vector<std::string> environment;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const char* variable = flag == "--max-bytes" ? "MAX_BYTES"
                           : flag == "--seconds" ? "SECONDS_A_LINE"
                                                 : nullptr;
    CHECK(variable != nullptr) << "gpu_collectives: no such option: " << flag;
    environment.push_back(absl::StrCat(variable, "=", argv[i + 1]));
  }
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 2) {
    std::cout << "nothing to measure: found " << gpus
              << " GPUs, wanted 2 or more\n";
    return 0;
  }
  mimo::RankProcesses ranks(gpus, "bench", environment);
  const absl::Status status = ranks.Wait(absl::Minutes(10));
  std::cout << ranks.Output(0);
  if (!status.ok()) std::cerr << status.message();
  return status.ok() ? 0 : 1;
}
