// One thread serves everybody by epoll; no socket is ever waited for alone, so
// nobody slow or silent keeps another waiting.
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/log/check.h"
#include "absl/log/log.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "comm/rendezvous/socket.h"
#include "comm/rendezvous/store.h"
#include "comm/rendezvous/store_protocol.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// A stranger is who has not yet proved to know the key.
constexpr absl::Duration kProofTime = absl::Seconds(10);
constexpr size_t kMaxStrangers = 256;  // then the oldest has to go
constexpr int kMaxRefusalLines = 100;  // of the log
// Answers that a rank has not read; one that does not read at all goes.
constexpr size_t kMaxUnread = 64 << 20;
constexpr char kFailure[] = "failure";

struct Connection {
  Socket socket;
  std::string peer;  // "10.0.0.7:41234"
  std::string in, out;
  StoreHandshake handshake;
  absl::Time proof_deadline;
  std::optional<FrameCodec> opener, sealer;  // once it has proved the key
  std::map<uint64_t, std::string> waits;     // call -> key
  bool asked_for_output = false;             // of epoll
};

class StoreServerImpl final : public StoreServer {
 public:
  StoreServerImpl(Socket listener, const std::string& key)
      : listener_(std::move(listener)),
        port_(LocalPort(listener_)),
        key_(key),
        epoll_(epoll_create1(EPOLL_CLOEXEC)),
        stop_(eventfd(0, EFD_CLOEXEC)) {
    CHECK(epoll_.fd() >= 0 && stop_.fd() >= 0) << std::strerror(errno);
    Watch(EPOLL_CTL_ADD, listener_, kListener, EPOLLIN);
    Watch(EPOLL_CTL_ADD, stop_, kStop, EPOLLIN);
    thread_ = std::thread([this] { Serve(); });
  }

  ~StoreServerImpl() override {
    const uint64_t one = 1;
    CHECK_EQ(write(stop_.fd(), &one, sizeof(one)), ssize_t{sizeof(one)});
    thread_.join();
  }

  int port() const override { return port_; }

  bool AwaitLeave(int ranks, absl::Duration timeout) override {
    absl::MutexLock lock(&mutex_);
    const auto all = [&] { return left_ >= ranks; };
    return mutex_.AwaitWithTimeout(absl::Condition(&all), timeout);
  }

 private:
  static constexpr uint64_t kListener = 0, kStop = 1;

  void Watch(int operation, const Socket& socket, uint64_t id,
             uint32_t events) {
    epoll_event event = {.events = events, .data = {.u64 = id}};
    CHECK_EQ(epoll_ctl(epoll_.fd(), operation, socket.fd(), &event), 0)
        << std::strerror(errno);
  }

  void Serve() {
    epoll_event events[64];
    while (true) {
      const int ready =
          epoll_wait(epoll_.fd(), events, 64, MillisecondsToProofDeadline());
      CHECK(ready >= 0 || errno == EINTR) << std::strerror(errno);
      for (int i = 0; i < ready; ++i) {
        const uint64_t id = events[i].data.u64;
        if (id == kStop) return;
        if (id == kListener) {
          Accept();
        } else if (connections_.contains(id)) {
          if (events[i].events & EPOLLOUT) Write(id);
          if (events[i].events & ~EPOLLOUT) Read(id);
        }
        EndDoomed();
      }
      while (MillisecondsToProofDeadline() == 0) {
        Refuse(*strangers_.begin(), "it is silent");
        EndDoomed();
      }
    }
  }

  // -1 when there is no stranger. The oldest has the lowest id.
  int MillisecondsToProofDeadline() const {
    if (strangers_.empty()) return -1;
    const absl::Duration left =
        connections_.at(*strangers_.begin()).proof_deadline - absl::Now();
    return std::max<int64_t>(
        0, absl::ToInt64Milliseconds(left + absl::Microseconds(999)));
  }

  void Accept() {
    Socket socket(accept4(listener_.fd(), nullptr, nullptr,
                          SOCK_CLOEXEC | SOCK_NONBLOCK));
    const bool full = socket.fd() < 0 && (errno == EMFILE || errno == ENFILE);
    if ((full || strangers_.size() >= kMaxStrangers) && !strangers_.empty()) {
      Refuse(*strangers_.begin(), "too many at once have not shown a key");
    }
    if (socket.fd() < 0) {
      // Nobody to send away: files that this process has elsewhere.
      if (full && strangers_.empty()) absl::SleepFor(absl::Milliseconds(10));
      return;
    }
    SetUpConnection(socket);
    const uint64_t id = ++last_id_;
    Watch(EPOLL_CTL_ADD, socket, id, EPOLLIN);
    Connection& connection = connections_[id];
    connection.peer = PeerName(socket);
    connection.socket = std::move(socket);
    connection.handshake = {.key = key_, .server_nonce = FreshNonce()};
    connection.proof_deadline = absl::Now() + kProofTime;
    strangers_.insert(id);
    connection.out = MakeHello(connection.handshake.server_nonce);
    Write(id);
  }

  void Read(uint64_t id) {
    Connection& connection = connections_.at(id);
    char chunk[1 << 14];
    const ssize_t got = recv(connection.socket.fd(), chunk, sizeof(chunk), 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      doomed_[id] =
          got == 0 || errno == ECONNRESET
              ? "process ended"
              : absl::StrCat("connection ended: ", std::strerror(errno));
      return;
    }
    connection.in.append(chunk, got);
    if (!connection.opener && !ReadProof(id, connection)) return;
    std::string body;
    while (!doomed_.contains(id)) {
      const absl::StatusOr<bool> opened =
          connection.opener->Open(connection.in, body);
      if (opened.ok() && !*opened) return;
      const absl::StatusOr<StoreRequest> request =
          opened.ok() ? StoreRequest::Decode(body) : opened.status();
      if (!request.ok()) {
        doomed_[id] = absl::StrCat("connection ended: it sent ",
                                   std::string(request.status().message()));
      } else if (request->op == StoreRequest::kClose) {
        Leave(id);
        return;
      } else {
        Handle(id, connection, *request);
      }
    }
  }

  // Whether the key is proved.
  bool ReadProof(uint64_t id, Connection& connection) {
    if (connection.in.size() < kProofBytes) return false;
    const absl::Status proved =
        connection.handshake.ReadProof(connection.in.substr(0, kProofBytes));
    if (!proved.ok()) {
      connection.out += StoreHandshake::MakeRefusal();
      Write(id);
      Refuse(id, proved.message());
      return false;
    }
    connection.in.erase(0, kProofBytes);
    connection.opener.emplace(connection.handshake, FrameCodec::kToServer);
    connection.sealer.emplace(connection.handshake, FrameCodec::kToClient);
    strangers_.erase(id);
    connection.out += connection.handshake.MakeVerdict();
    Write(id);
    return true;
  }

  void Handle(uint64_t id, Connection& connection,
              const StoreRequest& request) {
    const std::string& key = request.key;
    switch (request.op) {
      case StoreRequest::kSet:
        SetValue(key, request.value);
        Reply(id, {.id = request.id});
        break;
      case StoreRequest::kSetOnce:
        if (!table_.contains(key)) SetValue(key, request.value);
        Reply(id, {.id = request.id, .value = table_[key]});
        break;
      case StoreRequest::kGet:
        if (const auto found = table_.find(key); found != table_.end()) {
          Reply(id, {.id = request.id, .value = found->second});
        } else if (!connection.waits.emplace(request.id, key).second) {
          doomed_[id] = "connection ended: it sent a call's number twice";
        } else {
          waiters_[key].insert({id, request.id});
        }
        break;
      case StoreRequest::kAdd:
        Reply(id, Added(request));
        break;
      case StoreRequest::kForget:
        if (const auto found = connection.waits.find(request.id);
            found != connection.waits.end()) {
          RemoveWaiter(found->second, {id, request.id});
          connection.waits.erase(found);
        }
        break;
      case StoreRequest::kClose:
        break;  // Read has it
    }
  }

  StoreReply Added(const StoreRequest& request) {
    const auto found = table_.find(request.key);
    const std::string before = found == table_.end() ? "0" : found->second;
    int64_t value, amount, sum;
    if (!absl::SimpleAtoi(before, &value) ||
        !absl::SimpleAtoi(request.value, &amount) ||
        __builtin_add_overflow(value, amount, &sum)) {
      return {request.id, absl::StatusCode::kInvalidArgument,
              absl::StrCat("\"", request.key, "\": \"", before.substr(0, 40),
                           "\", wanted a number to add ",
                           request.value.substr(0, 40), " to")};
    }
    SetValue(request.key, absl::StrCat(sum));
    return {request.id, absl::StatusCode::kOk, absl::StrCat(sum)};
  }

  void SetValue(const std::string& key, const std::string& value) {
    table_[key] = value;
    const auto found = waiters_.find(key);
    if (found == waiters_.end()) return;
    const auto waiting = std::move(found->second);
    waiters_.erase(found);
    for (const auto& [id, call] : waiting) {
      connections_.at(id).waits.erase(call);
      Reply(id, {.id = call, .value = value});
    }
  }

  void RemoveWaiter(const std::string& key, std::pair<uint64_t, uint64_t> who) {
    const auto found = waiters_.find(key);
    found->second.erase(who);
    if (found->second.empty()) waiters_.erase(found);
  }

  void Reply(uint64_t id, const StoreReply& reply) {
    Connection& connection = connections_.at(id);
    connection.out += connection.sealer->Seal(reply.Encode());
    Write(id);
  }

  void Write(uint64_t id) {
    Connection& connection = connections_.at(id);
    const ssize_t sent = send(connection.socket.fd(), connection.out.data(),
                              connection.out.size(), MSG_NOSIGNAL);
    if (sent > 0) connection.out.erase(0, sent);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
      // What it sent before it ended is still to be read, a Close perhaps.
      connection.out.clear();
    }
    if (connection.out.size() > kMaxUnread) {
      doomed_[id] = "connection ended: it does not read its answers";
    }
    const bool ask = !connection.out.empty();
    if (ask != connection.asked_for_output) {
      connection.asked_for_output = ask;
      Watch(EPOLL_CTL_MOD, connection.socket, id,
            ask ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
  }

  void Refuse(uint64_t id, absl::string_view why) {
    if (++refusals_ <= kMaxRefusalLines) {
      LOG(WARNING) << "store: refused " << connections_.at(id).peer << ": "
                   << why;
    }
    doomed_[id] = "";
  }

  // Ends the connections in `doomed_`; to tell of one may doom others.
  void EndDoomed() {
    while (!doomed_.empty()) {
      const auto [id, why] = *doomed_.begin();
      const bool rank = connections_.at(id).opener.has_value();
      const std::string line =
          absl::StrCat("rank ", connections_.at(id).handshake.rank, "'s ", why);
      Leave(id);
      if (rank && !table_.contains(kFailure)) SetValue(kFailure, line);
    }
  }

  void Leave(uint64_t id) {
    const Connection& connection = connections_.at(id);
    for (const auto& [call, key] : connection.waits) {
      RemoveWaiter(key, {id, call});
    }
    strangers_.erase(id);
    doomed_.erase(id);
    if (connection.opener) {
      absl::MutexLock lock(&mutex_);
      ++left_;
    }
    connections_.erase(id);
  }

  const Socket listener_;
  const int port_;
  const std::string key_;
  const Socket epoll_, stop_;

  // Of thread_ alone.
  std::map<std::string, std::string> table_;
  std::map<uint64_t, Connection> connections_;
  uint64_t last_id_ = kStop;
  std::set<uint64_t> strangers_;
  std::map<uint64_t, std::string> doomed_;  // why
  // key -> the (connection, call) that wait for it
  std::map<std::string, std::set<std::pair<uint64_t, uint64_t>>> waiters_;
  int refusals_ = 0;

  absl::Mutex mutex_;
  int left_ ABSL_GUARDED_BY(mutex_) = 0;  // ranks
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StoreServer>> StoreServer::Start(
    const std::string& host, int port, const std::string& key) {
  if (key.empty()) return absl::InvalidArgumentError("the store has no key");
  MIMO_ASSIGN_OR_RETURN(Socket listener, Listen(host, port));
  return std::make_unique<StoreServerImpl>(std::move(listener), key);
}

}  // namespace mimo
