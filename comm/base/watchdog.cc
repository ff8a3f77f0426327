#include "comm/base/watchdog.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <utility>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace mimo {
namespace {

using SteadyClock = std::chrono::steady_clock;

// A status as a board carries it, and back.
std::string ToReason(const absl::Status& status) {
  return absl::StrCat(absl::StatusCodeToString(status.code()), ": ",
                      status.message());
}

absl::Status FromReason(absl::string_view reason) {
  for (int i = 1; i <= 16; ++i) {
    const auto code = static_cast<absl::StatusCode>(i);
    absl::string_view message = reason;
    if (absl::ConsumePrefix(&message,
                            absl::StrCat(absl::StatusCodeToString(code), ": ")))
      return absl::Status(code, message);
  }
  return absl::UnavailableError(reason);
}

// What the store says of a rank that is no more.
bool IsEnd(const absl::Status& reason) {
  return absl::EndsWith(reason.message(), "'s process ended") ||
         reason.message() == "rank 0's store is gone";
}

// "0, 1, 2"; of many the first 16.
template <typename T>
std::string List(const std::vector<T>& items) {
  const size_t shown = std::min<size_t>(items.size(), 16);
  std::string list = absl::StrJoin(items.begin(), items.begin() + shown, ", ");
  if (shown < items.size())
    absl::StrAppend(&list, " and ", items.size() - shown, " more");
  return list;
}

// "in all_reduce(sum, 3 float32), sequence 4"
std::string ToPost(const Operation& operation) {
  return absl::StrCat(operation.done ? "done with " : "in ",
                      operation.ToString());
}

// The record of a communicator: its group, then a line for each operation.
std::string ToDump(const Communicator& communicator) {
  const std::vector<Operation> operations = communicator.LastOperations();
  std::string dump =
      absl::StrCat("group ", communicator.name(), " of ranks [",
                   absl::StrJoin(communicator.members(), ", "), "], its last ",
                   operations.size(), " operations\n");
  for (const Operation& operation : operations)
    absl::StrAppend(&dump,
                    absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ ", operation.start,
                                     absl::UTCTimeZone()),
                    ToPost(operation), "\n");
  return dump;
}

// The first of `theirs`, operations by line, that is another collective than
// that of `own` with its sequence number, and the latter; "" if there is none.
std::string Difference(absl::string_view theirs,
                       const std::vector<std::string>& own) {
  for (absl::string_view line : absl::StrSplit(theirs, '\n')) {
    absl::ConsumePrefix(&line, "in ");
    const size_t sequence = line.rfind(", sequence ");
    if (sequence == line.npos || absl::StartsWith(line, "exchange(")) continue;
    for (const std::string& mine : own) {
      if (absl::EndsWith(mine, line.substr(sequence)) && mine != line)
        return absl::StrCat(line, ", where this rank made ", mine);
    }
  }
  return "";
}

// Whether a rank that posted `post` has made `operation` or is in it.
bool Made(absl::string_view post, const Operation& operation) {
  for (absl::string_view line : absl::StrSplit(post, '\n'))
    if (absl::EndsWith(line, operation.ToString())) return true;
  return false;
}

}  // namespace

std::string OwnFailure(int rank, const absl::Status& status) {
  return ToReason(
      absl::Status(status.code(),
                   absl::StrCat("rank ", rank, " failed: ", status.message())));
}

bool IsOwnFailure(absl::string_view reason) {
  const absl::Status status = FromReason(reason);
  absl::string_view message = status.message();
  if (!absl::ConsumePrefix(&message, "rank ")) return false;
  const size_t digits = message.find_first_not_of("0123456789");
  return digits > 0 && digits != message.npos &&
         absl::StartsWith(message.substr(digits), " failed: ");
}

Watchdog::Watchdog(int rank, std::shared_ptr<FailureBoard> board,
                   absl::Duration timeout)
    : rank_(rank),
      board_(std::move(board)),
      interval_(std::clamp(timeout / 50, absl::Milliseconds(1),
                           absl::Milliseconds(50))),
      asking_(std::min(timeout / 4, absl::Seconds(1))),
      limit_(timeout - asking_ - 2 * interval_) {
  CHECK_GE(timeout, absl::Milliseconds(10))
      << "Watchdog: found and wanted timeout";
  thread_ = std::thread([this] { Run(); });
}

Watchdog::~Watchdog() {
  {
    absl::MutexLock lock(&mutex_);
    CHECK(watched_.empty()) << "Watchdog: found a communicator that has not "
                               "called Retire, wanted none";
    stop_ = true;
  }
  thread_.join();
}

void Watchdog::Add(Communicator* communicator) {
  absl::MutexLock lock(&mutex_);
  watched_.push_back({communicator});
  if (!over_.ok()) communicator->Abort(over_);
}

void Watchdog::Remove(Communicator* communicator) {
  absl::MutexLock lock(&mutex_);
  std::erase_if(watched_, [communicator](const Watched& watched) {
    return watched.communicator == communicator;
  });
  // It may come between another one's failure and FailAll.
  for (const Watched& watched : watched_) {
    const absl::Status health = watched.communicator->Health();
    if (!health.ok()) communicator->Abort(health);
  }
}

void Watchdog::Run() {
  while (true) {
    absl::Status reason;
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stop_), interval_)) return;
      reason = Look();
    }
    if (!reason.ok()) board_->Raise(ToReason(reason));
    // Another rank's reason may have been the first.
    if (const std::string raised = board_->Raised(); !raised.empty())
      reason = FromReason(raised);
    if (!reason.ok()) return FailAll(reason);
  }
}

absl::Status Watchdog::Look() {
  const auto now = SteadyClock::now();
  for (Watched& watched : watched_) {
    Communicator& communicator = *watched.communicator;
    absl::Status status = communicator.Health();
    if (status.ok()) status = communicator.Poll();
    if (!status.ok()) return status;
    const int64_t completed = communicator.Completed();
    if (communicator.begun() <= completed) {
      watched.completed = -1;
    } else if (watched.completed != completed) {
      watched.completed = completed;
      watched.since = now;
    } else if (const absl::Duration waited =
                   absl::FromChrono(now - watched.since);
               waited > limit_) {
      return absl::DeadlineExceededError(absl::StrCat(
          "rank ", rank_, ": ", Describe(communicator).ToString(), " within ",
          absl::FormatDuration(absl::Trunc(waited, absl::Milliseconds(1)))));
    }
  }
  return absl::OkStatus();
}

Watchdog::Doing Watchdog::Describe(const Communicator& communicator) {
  Doing doing = {.group = communicator.name(),
                 .members = {communicator.members().begin(),
                             communicator.members().end()}};
  const std::vector<Operation> operations = communicator.LastOperations();
  if (operations.empty()) return doing;
  const auto unfinished =
      std::find_if(operations.begin(), operations.end(),
                   [](const Operation& operation) { return !operation.done; });
  doing.operation =
      unfinished == operations.end() ? operations.back() : *unfinished;
  for (const Operation& operation : operations) {
    if (operation.kind != Operation::kExchange)
      doing.collectives.push_back(operation.ToString());
  }
  return doing;
}

std::string Watchdog::Doing::ToString() const {
  return absl::StrCat(operation->ToString(), " in group ", group, " of ranks [",
                      List(members),
                      operation->done ? "] was the last" : "] does not end");
}

std::vector<std::string> Watchdog::Ask(const std::string& group,
                                       const std::vector<int>& members,
                                       absl::Time deadline) {
  std::vector<std::string> posts(members.size());
  // In turns, so that one that is missing leaves time for the others.
  for (bool waiting = true; waiting;) {
    waiting = false;
    for (size_t i = 0; i < members.size(); ++i) {
      if (!posts[i].empty()) continue;
      posts[i] = board_->Posted(group, members[i], absl::Now() + interval_);
      waiting |= posts[i].empty();
    }
    absl::MutexLock lock(&mutex_);
    waiting &= !stop_ && absl::Now() < deadline;
  }
  return posts;
}

absl::Status Watchdog::Explain(const Doing& doing, const Doing& world,
                               const absl::Status& reason) {
  const Operation& own = *doing.operation;
  const bool exchange = own.kind == Operation::kExchange;
  const absl::Time deadline = absl::Now() + asking_;
  bool differs = false;
  std::vector<std::string> missing, others, posts;
  if (IsEnd(reason)) {
    // Of a rank's end the others know no more.
  } else if (Ask(doing.group, {rank_}, deadline)[0].empty()) {
    missing.push_back("rank 0 (no answer)");  // whose the board is
  } else {
    posts = Ask(doing.group, doing.members, deadline);
  }
  for (size_t i = 0; i < posts.size(); ++i) {
    const int member = doing.members[i];
    if (member == rank_) continue;
    if (posts[i].empty()) {
      missing.push_back(absl::StrCat("rank ", member, " (no answer)"));
      continue;
    }
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(posts[i], absl::MaxSplits('\n', 1));
    // Where calls return at once, a rank goes on after one that differs.
    if (const std::string difference =
            Difference(parts.second, doing.collectives);
        !difference.empty()) {
      others.push_back(absl::StrCat("rank ", member, " made ", difference));
      differs = true;
      continue;
    }
    const absl::string_view post = parts.first;
    // Of an exchange, only the first peer's call says something.
    if (exchange ? i != own.root : Made(posts[i], own)) continue;
    if (absl::StartsWith(post, "in ")) {
      const std::string difference =
          exchange ? "" : Difference(post, doing.collectives);
      differs |= !difference.empty();
      // What this rank made is known when it waits in it.
      const bool here = absl::EndsWith(difference, own.ToString());
      others.push_back(
          absl::StrCat("rank ", member, " is ",
                       difference.empty() || here ? post : "in " + difference));
    } else {
      missing.push_back(absl::StrCat("rank ", member, " (", post, ")"));
    }
  }
  // Those that this one waits for wait themselves, in the end for another.
  if (!posts.empty() && missing.empty() && !differs &&
      absl::IsDeadlineExceeded(reason)) {
    posts = Ask(world.group, world.members, deadline);
    for (size_t i = 0; i < posts.size(); ++i) {
      if (absl::StartsWith(posts[i], "in ")) continue;
      missing.push_back(absl::StrCat(
          "rank ", world.members[i],
          posts[i].empty() ? " (no answer)" : " (in no operation)"));
    }
  }
  std::string message = absl::StrCat("rank ", rank_, ": ", doing.ToString());
  if (!missing.empty()) absl::StrAppend(&message, "; missing: ", List(missing));
  if (!others.empty()) absl::StrAppend(&message, "; ", List(others));
  // Any of those that wait may be the first to report.
  if (missing.empty() && !differs)
    absl::StrAppend(&message, "; first report: ", reason.message());
  return absl::Status(
      differs ? absl::StatusCode::kFailedPrecondition : reason.code(), message);
}

void Watchdog::FailAll(const absl::Status& reason) {
  std::vector<Doing> doings;
  std::string dump;
  {
    absl::MutexLock lock(&mutex_);
    for (const Watched& watched : watched_) {
      doings.push_back(Describe(*watched.communicator));
      dump += ToDump(*watched.communicator);
    }
  }
  const Doing* waiting = nullptr;  // the one that waits longest
  for (const Doing& doing : doings) {
    if (doing.operation.has_value() && !doing.operation->done &&
        (waiting == nullptr ||
         doing.operation->start < waiting->operation->start))
      waiting = &doing;
  }
  for (const Doing& doing : doings) {
    std::string post = "before its first operation", first;
    if (doing.operation.has_value()) {
      first = doing.operation->ToString();
      post = ToPost(*doing.operation);
    }
    if (waiting != nullptr && !absl::StartsWith(post, "in ")) {
      first.clear();
      post = absl::StrCat(ToPost(*waiting->operation), " in group ",
                          waiting->group);
    }
    for (const std::string& collective : doing.collectives)
      if (collective != first) absl::StrAppend(&post, "\n", collective);
    board_->Post(doing.group, post);
  }
  if (const char* folder = std::getenv("MIMO_OPERATIONS_DUMP")) {
    const std::string path = absl::StrCat(folder, "/rank_", rank_, ".txt");
    if (!(std::ofstream(path) << dump << std::flush))
      LOG(ERROR) << path << ": cannot be written";
  }
  absl::Status status = reason;
  const bool told = IsOwnFailure(ToReason(reason));
  if (told) {
    // There is nothing to add.
  } else if (waiting != nullptr) {
    status = Explain(*waiting, doings.front(), reason);
  } else {
    status = absl::Status(reason.code(),
                          absl::StrCat("rank ", rank_, ": in no operation; ",
                                       "first report: ", reason.message()));
    // Those that wait say more: between threads, the first to abort speaks for
    // all of the group.
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&stop_), asking_);
  }
  if (!told) LOG(ERROR) << status.message();
  absl::MutexLock lock(&mutex_);
  over_ = status;
  for (const Watched& watched : watched_) watched.communicator->Abort(status);
}

}  // namespace mimo
