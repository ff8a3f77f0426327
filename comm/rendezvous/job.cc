#include "comm/rendezvous/job.h"

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr int kMaxRanks = std::numeric_limits<int>::max();
constexpr int kFirstDerivedPort = 20000, kDerivedPorts = 12000;

// "" if it is not set.
std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The first of these that is set.
std::string Variable(const char* name, const char* otherwise) {
  const std::string value = Variable(name);
  return value.empty() ? Variable(otherwise) : value;
}

absl::Status Wrong(absl::string_view name, absl::string_view found,
                   absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("environment: ", name, ": ", found, ", wanted ", wanted));
}

absl::StatusOr<int> Number(const char* name, int low, int high) {
  const std::string text = Variable(name);
  if (text.empty()) return Wrong(name, "not set", "a number");
  int value;
  if (!absl::SimpleAtoi(text, &value) || value < low || value > high) {
    return Wrong(name, absl::StrCat("\"", text, "\""),
                 absl::StrCat("a number from ", low, " to ", high));
  }
  return value;
}

absl::Status ReadRank(const char* size, const char* rank, Job& job) {
  MIMO_ASSIGN_OR_RETURN(job.world_size, Number(size, 1, kMaxRanks));
  MIMO_ASSIGN_OR_RETURN(job.rank, Number(rank, 0, job.world_size - 1));
  return absl::OkStatus();
}

absl::Status ReadLocalRank(const char* name, Job& job) {
  MIMO_ASSIGN_OR_RETURN(job.local_rank,
                        Number(name, 0, job.local_world_size - 1));
  if (job.local_world_size == job.world_size && job.local_rank != job.rank) {
    return Wrong(
        name, absl::StrCat(job.local_rank),
        absl::StrCat("rank ", job.rank, " as all ranks are on this machine"));
  }
  return absl::OkStatus();
}

int DerivedPort(uint64_t number) {
  return kFirstDerivedPort + static_cast<int>(number % kDerivedPorts);
}

absl::Status ReadMaster(Job& job) {
  if (const std::string host = Variable("MASTER_ADDR"); !host.empty()) {
    job.host = host;
  }
  if (!Variable("MASTER_PORT").empty()) {
    MIMO_ASSIGN_OR_RETURN(job.port, Number("MASTER_PORT", 1, 65534));
    if (!Variable("TORCHELASTIC_RUN_ID").empty()) ++job.port;
  }
  if (job.host.empty()) {
    return Wrong("MASTER_ADDR", "not set", "the name of rank 0's machine");
  }
  if (job.port == 0) {
    return Wrong("MASTER_PORT", "not set", "a free port of rank 0's machine");
  }
  return absl::OkStatus();
}

absl::Status ReadTorchrun(Job& job) {
  MIMO_RETURN_IF_ERROR(ReadRank("WORLD_SIZE", "RANK", job));
  MIMO_ASSIGN_OR_RETURN(job.local_world_size,
                        Number("LOCAL_WORLD_SIZE", 1, job.world_size));
  return ReadLocalRank("LOCAL_RANK", job);
}

absl::Status ReadMpirun(Job& job) {
  MIMO_RETURN_IF_ERROR(
      ReadRank("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", job));
  MIMO_ASSIGN_OR_RETURN(
      job.local_world_size,
      Number("OMPI_COMM_WORLD_LOCAL_SIZE", 1, job.world_size));
  MIMO_RETURN_IF_ERROR(ReadLocalRank("OMPI_COMM_WORLD_LOCAL_RANK", job));
  const std::string name =
      Variable("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid");
  if (job.local_world_size == job.world_size && !name.empty()) {
    uint64_t number = 0;
    for (const unsigned char c : name) number = number * 257 + c;
    job.host = "127.0.0.1";
    job.port = DerivedPort(number);
  }
  return absl::OkStatus();
}

// The entry `node` of a list such as "4(x2),3".
absl::StatusOr<int> TasksOfNode(const std::string& list, int node) {
  for (absl::string_view entry : absl::StrSplit(list, ',')) {
    const std::vector<absl::string_view> parts =
        absl::StrSplit(entry, absl::MaxSplits("(x", 1));
    int tasks, times = 1;
    if (!absl::SimpleAtoi(parts[0], &tasks) ||
        (parts.size() == 2 &&
         (parts[1].empty() || parts[1].back() != ')' ||
          !absl::SimpleAtoi(parts[1].substr(0, parts[1].size() - 1),
                            &times)))) {
      break;
    }
    node -= times;
    if (node < 0) return tasks;
  }
  return Wrong("SLURM_STEP_TASKS_PER_NODE", absl::StrCat("\"", list, "\""),
               "the tasks of each node as in 4(x2),3, and of SLURM_NODEID");
}

absl::Status ReadSrun(Job& job) {
  MIMO_RETURN_IF_ERROR(ReadRank("SLURM_NTASKS", "SLURM_PROCID", job));
  const std::string nodes =
      Variable("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST");
  const std::string tasks =
      Variable("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE");
  if (!tasks.empty()) {
    int node = 0;
    if (!Variable("SLURM_NODEID").empty()) {
      MIMO_ASSIGN_OR_RETURN(node, Number("SLURM_NODEID", 0, kMaxRanks));
    }
    MIMO_ASSIGN_OR_RETURN(job.local_world_size, TasksOfNode(tasks, node));
  } else if (nodes.find_first_of(",[") == std::string::npos) {
    job.local_world_size = job.world_size;  // of one machine
  } else {
    return Wrong("SLURM_STEP_TASKS_PER_NODE", "not set",
                 "the tasks of each node");
  }
  if (job.local_world_size < 1 || job.local_world_size > job.world_size) {
    return Wrong("SLURM_STEP_TASKS_PER_NODE",
                 absl::StrCat(job.local_world_size, " tasks on this node"),
                 absl::StrCat("1 to SLURM_NTASKS, ", job.world_size));
  }
  MIMO_RETURN_IF_ERROR(ReadLocalRank("SLURM_LOCALID", job));
  if (!nodes.empty()) {
    MIMO_ASSIGN_OR_RETURN(job.host, FirstSlurmHost(nodes));
  }
  if (!Variable("SLURM_JOB_ID").empty()) {
    int step = 0;
    if (!Variable("SLURM_STEP_ID").empty()) {
      MIMO_ASSIGN_OR_RETURN(step, Number("SLURM_STEP_ID", 0, kMaxRanks));
    }
    MIMO_ASSIGN_OR_RETURN(const int id, Number("SLURM_JOB_ID", 0, kMaxRanks));
    // Steps of a job run side by side, and so do jobs that came together.
    job.port = DerivedPort(uint64_t{64} * id + step);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadKey() {
  const std::string path = Variable("MIMO_STORE_KEY_FILE");
  if (path.empty()) {
    const std::string key = Variable("MIMO_STORE_KEY");
    if (!key.empty()) return key;
    return Wrong("MIMO_STORE_KEY_FILE", "not set",
                 "a file with a secret that all ranks share (head -c 32 "
                 "/dev/urandom | base64 > FILE; chmod 600 FILE), or a start by "
                 "mimo launch, which makes one");
  }
  std::ifstream file(path, std::ios::binary);
  std::string key((std::istreambuf_iterator<char>(file)), {});
  absl::StripAsciiWhitespace(&key);
  if (!key.empty()) return key;
  return Wrong(
      "MIMO_STORE_KEY_FILE",
      absl::StrCat(path, file.is_open() ? " is empty" : " cannot be read"),
      "a file with a secret that all ranks share");
}

}  // namespace

absl::StatusOr<std::string> FirstSlurmHost(absl::string_view list) {
  const absl::Status wrong =
      Wrong("SLURM_STEP_NODELIST", absl::StrCat("\"", list, "\""),
            "host names as in node[01-04,7],x3");
  // Up to the first comma that is not in brackets; of each pair of brackets,
  // the first number as it is written.
  std::string host;
  for (size_t i = 0; i < list.size() && list[i] != ','; ++i) {
    if (list[i] != '[') {
      host += list[i];
      continue;
    }
    const size_t close = list.find(']', i), end = list.find_first_of(",-]", i);
    if (close == absl::string_view::npos || end == i + 1) return wrong;
    absl::StrAppend(&host, list.substr(i + 1, end - i - 1));
    i = close;
  }
  if (host.empty() || host.find_first_of("] \t") != std::string::npos) {
    return wrong;
  }
  return host;
}

absl::StatusOr<Job> JobFromEnvironment() {
  Job job;
  if (!Variable("RANK", "WORLD_SIZE").empty()) {
    MIMO_RETURN_IF_ERROR(ReadTorchrun(job));
  } else if (!Variable("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
                  .empty()) {
    MIMO_RETURN_IF_ERROR(ReadMpirun(job));
  } else if (!Variable("SLURM_PROCID").empty()) {
    MIMO_RETURN_IF_ERROR(ReadSrun(job));
  }
  if (job.world_size == 1) return Job();
  MIMO_RETURN_IF_ERROR(ReadMaster(job));
  MIMO_ASSIGN_OR_RETURN(job.key, ReadKey());
  return job;
}

}  // namespace mimo
