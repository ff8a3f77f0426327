#include "comm/testing/rank_processes.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr char kBody[] = "MIMO_RANK_BODY";
constexpr char kKey[] = "the key of a test's ranks";
constexpr absl::Duration kConnect = absl::Seconds(60);

absl::Status RunRank(const RankBody& body) {
  MIMO_ASSIGN_OR_RETURN(const Job job, JobFromEnvironment());
  MIMO_ASSIGN_OR_RETURN(
      const std::unique_ptr<Store> store,
      Store::Connect(job.host, job.port, job.key, job.rank, kConnect));
  const absl::Status status = body(job, *store);
  store->Close();
  return status;
}

}  // namespace

void RunRankIfAsked(const std::map<std::string, RankBody>& bodies) {
  const char* name = std::getenv(kBody);
  if (name == nullptr) return;
  const auto body = bodies.find(name);
  CHECK(body != bodies.end()) << "no such body: " << name;
  const absl::Status status = RunRank(body->second);
  std::cout << "status: " << status << std::endl;
  std::_Exit(status.ok() ? 0 : 1);
}

RankProcesses::RankProcesses(int size, const std::string& body,
                             const std::vector<std::string>& environment) {
  auto server = StoreServer::Start("127.0.0.1", 0, kKey);
  CHECK(server.ok()) << server.status();
  server_ = *std::move(server);
  const char* folder = std::getenv("TEST_TMPDIR");
  for (int rank = 0; rank < size; ++rank) {
    std::string output =
        absl::StrCat(folder == nullptr ? "/tmp" : folder, "/rank.XXXXXX");
    const int file = mkostemp(output.data(), O_CLOEXEC);
    PCHECK(file >= 0) << output;

    std::vector<std::string> variables = {
        absl::StrCat(kBody, "=", body),
        absl::StrCat("RANK=", rank),
        absl::StrCat("WORLD_SIZE=", size),
        absl::StrCat("LOCAL_RANK=", rank),
        absl::StrCat("LOCAL_WORLD_SIZE=", size),
        "MASTER_ADDR=127.0.0.1",
        absl::StrCat("MASTER_PORT=", server_->port()),
        absl::StrCat("MIMO_STORE_KEY=", kKey)};
    variables.insert(variables.end(), environment.begin(), environment.end());
    std::vector<char*> environ_of_rank;
    for (std::string& variable : variables)
      environ_of_rank.push_back(variable.data());
    for (char** variable = environ; *variable != nullptr; ++variable)
      environ_of_rank.push_back(*variable);
    environ_of_rank.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, file, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, file, STDERR_FILENO);
    std::string program = "/proc/self/exe";
    char* arguments[] = {program.data(), nullptr};
    pid_t pid;
    const int error = posix_spawn(&pid, program.c_str(), &actions, nullptr,
                                  arguments, environ_of_rank.data());
    CHECK_EQ(error, 0) << "posix_spawn";
    posix_spawn_file_actions_destroy(&actions);
    close(file);
    ranks_.push_back({pid, output});
  }
}

RankProcesses::~RankProcesses() {
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    Wait(rank, absl::InfinitePast());
    unlink(ranks_[rank].output.c_str());
  }
}

std::string RankProcesses::Output(int rank) const {
  std::ostringstream text;
  text << std::ifstream(ranks_[rank].output).rdbuf();
  return text.str();
}

bool RankProcesses::AwaitOutput(const std::string& text,
                                absl::Duration timeout) const {
  const absl::Time deadline = absl::Now() + timeout;
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    while (!absl::StrContains(Output(rank), text)) {
      siginfo_t ended = {};
      waitid(P_PID, ranks_[rank].pid, &ended, WEXITED | WNOHANG | WNOWAIT);
      if (ended.si_pid != 0 || absl::Now() > deadline)
        return absl::StrContains(Output(rank), text);
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  return true;
}

int RankProcesses::Wait(int rank, absl::Time deadline) {
  Rank& r = ranks_[rank];
  int status = 0;
  while (!r.ended) {
    const pid_t ended = waitpid(r.pid, &status, WNOHANG);
    PCHECK(ended >= 0) << "waitpid";
    if (ended == r.pid) {
      r.ended = true;
      r.status =
          WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    } else if (absl::Now() > deadline) {
      kill(r.pid, SIGKILL);
      waitpid(r.pid, &status, 0);
      r.ended = true;
      r.status = -1;
    } else {
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  return r.status;
}

absl::Status RankProcesses::Wait(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  std::string bad;
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    if (const int status = Wait(rank, deadline); status != 0)
      absl::StrAppend(&bad, "rank ", rank, " ended with ", status, ":\n",
                      Output(rank));
  }
  return bad.empty() ? absl::OkStatus() : absl::InternalError(bad);
}

}  // namespace mimo
