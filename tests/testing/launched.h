// The mimo command as a process of its own, and as a job of several.
#ifndef MIMO_TESTS_TESTING_LAUNCHED_H_
#define MIMO_TESTS_TESTING_LAUNCHED_H_

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "comm/rendezvous/store.h"
#include "gtest/gtest.h"

namespace mimo {

// Of `mimo launch`, to run `words` on each of so many processes.
inline std::vector<std::string> Launched(
    int processes, const std::vector<std::string>& words) {
  std::vector<std::string> all = {"launch", "--nproc", absl::StrCat(processes),
                                  "--"};
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

// Starts cli/mimo behind `variables`; its output goes to folder/out and
// folder/err, with `suffix`.
inline pid_t Start(const std::string& folder, std::vector<std::string> words,
                   const std::string& variables = "",
                   const std::string& suffix = "") {
  for (std::string& word : words) word = absl::StrCat("'", word, "'");
  const std::string command = absl::StrCat(
      variables, " exec cli/mimo ", absl::StrJoin(words, " "), " > ", folder,
      "/out", suffix, " 2> ", folder, "/err", suffix);
  const pid_t child = fork();
  if (child == 0) {
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
  return child;
}

inline int FreePort() {
  return (*StoreServer::Start("127.0.0.1", 0, "key"))->port();
}

// Starts rank `rank` of `ranks` that meet at `port`, as a scheduler would on
// machines of `each` ranks.
inline pid_t StartRank(int rank, int ranks, int port, const std::string& folder,
                       const std::vector<std::string>& words, int each) {
  const int machine = rank / each;
  return Start(
      folder, words,
      absl::StrCat(
          "RANK=", rank, " WORLD_SIZE=", ranks, " LOCAL_RANK=", rank % each,
          " LOCAL_WORLD_SIZE=", std::min(each, ranks - machine * each),
          " NCCL_HOSTID=", machine, " MASTER_ADDR=127.0.0.1 MASTER_PORT=", port,
          " MIMO_STORE_KEY=key MIMO_THREADS=1"),
      absl::StrCat(rank));
}

// All of them; their process ids.
inline std::vector<pid_t> StartRanks(int ranks, const std::string& folder,
                                     const std::vector<std::string>& words,
                                     int each) {
  const int port = FreePort();
  std::vector<pid_t> started;
  for (int rank = 0; rank < ranks; ++rank)
    started.push_back(StartRank(rank, ranks, port, folder, words, each));
  return started;
}

// Its exit code; 128 and the signal that ended it.
inline int Wait(pid_t child) {
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace mimo

#endif  // MIMO_TESTS_TESTING_LAUNCHED_H_
