// A rank of the launcher's test: meets the others over the store, says so, and
// then does what its argument says: `leave` in order, or `fail`, where rank 1
// is killed and the others say what they learn of it.
#include <unistd.h>

#include <csignal>
#include <iostream>
#include <memory>
#include <string>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/rendezvous/job.h"
#include "comm/rendezvous/store.h"
#include "comm/rendezvous/store_board.h"

int main(int argc, char** argv) {
  const absl::Duration kLong = absl::Seconds(60);
  const auto job = mimo::JobFromEnvironment();
  CHECK_OK(job.status());
  std::unique_ptr<mimo::StoreServer> server;
  if (job->rank == 0) {
    auto started = mimo::StoreServer::Start(job->host, job->port, job->key);
    CHECK_OK(started.status());
    server = *std::move(started);
  }
  const auto connected =
      mimo::Store::Connect(job->host, job->port, job->key, job->rank, kLong);
  CHECK_OK(connected.status());
  mimo::Store& store = **connected;
  const auto board = mimo::NewStoreBoard(store, job->rank);
  if (*store.Add("met", 1) == job->world_size) {
    CHECK_OK(store.Set("all met", ""));
  }
  CHECK_OK(store.Get("all met", kLong).status());
  std::cout << "met " << job->world_size - 1 << " others" << std::endl;

  if (argc == 2 && std::string(argv[1]) == "fail") {
    std::signal(SIGTERM, SIG_IGN);  // the launcher's, when rank 1 is gone
    CHECK_OK(store.Set(absl::StrCat("ready/", job->rank), ""));
    for (int rank = 0; rank < job->world_size; ++rank) {
      CHECK_OK(store.Get(absl::StrCat("ready/", rank), kLong).status());
    }
    if (job->rank == 1) kill(getpid(), SIGKILL);
    while (board->Raised().empty()) absl::SleepFor(absl::Milliseconds(1));
    std::cout << board->Raised() << std::endl;
    store.Close();
    if (server) CHECK(server->AwaitLeave(job->world_size, kLong));
    return 1;
  }
  store.Close();
  if (server) CHECK(server->AwaitLeave(job->world_size, kLong));
  return 0;
}
