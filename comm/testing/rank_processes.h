// Ranks that are processes of this machine: this program, started once a rank.
//
//   int main(int argc, char** argv) {
//     RunRankIfAsked({{"all_reduce", AllReduceBody}});  // in a rank: no return
//     ...  RankProcesses ranks(2, "all_reduce"); ranks.Wait(absl::Seconds(60));
//   }
#ifndef MIMO_COMM_TESTING_RANK_PROCESSES_H_
#define MIMO_COMM_TESTING_RANK_PROCESSES_H_

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/rendezvous/job.h"
#include "comm/rendezvous/store.h"

namespace mimo {

// What a rank does. Its status goes to the rank's output, and to the exit
// status: 0 if OK.
using RankBody = std::function<absl::Status(const Job& job, Store& store)>;

// In a process that RankProcesses started: runs the body it names and exits,
// leaving the store in good order. Else returns.
void RunRankIfAsked(const std::map<std::string, RankBody>& bodies);

class RankProcesses {
 public:
  // 2 ranks or more. Their environment is the launcher's, and `environment`
  // ("NAME=value"). Their store is served here.
  RankProcesses(int size, const std::string& body,
                const std::vector<std::string>& environment = {});
  ~RankProcesses();  // kills those that still run
  RankProcesses(const RankProcesses&) = delete;
  RankProcesses& operator=(const RankProcesses&) = delete;

  pid_t pid(int rank) const { return ranks_[rank].pid; }
  // What a rank has printed so far.
  std::string Output(int rank) const;
  // Waits until all ranks have printed `text`, one has ended without it, or
  // `timeout`; whether they did. Before any Wait.
  bool AwaitOutput(const std::string& text, absl::Duration timeout) const;

  // Waits for a rank's end, at most until `deadline`, then kills it. Its exit
  // status, 128 + the signal that ended it, or -1 if it was still running.
  int Wait(int rank, absl::Time deadline);
  // Waits for all; OK if all exited with 0, else what the others printed.
  absl::Status Wait(absl::Duration timeout);

 private:
  struct Rank {
    pid_t pid;
    std::string output;  // a file
    bool ended = false;
    int status = 0;
  };

  std::unique_ptr<StoreServer> server_;
  std::vector<Rank> ranks_;
};

}  // namespace mimo

#endif  // MIMO_COMM_TESTING_RANK_PROCESSES_H_
