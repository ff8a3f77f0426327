#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/log/check.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "comm/rendezvous/socket.h"
#include "comm/rendezvous/store.h"
#include "comm/rendezvous/store_protocol.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// How long a server that lives may take for an answer that it need not wait
// for, and to take leave: it reads later what was sent.
constexpr absl::Duration kPatience = absl::Seconds(30);
constexpr absl::Duration kLeave = absl::Seconds(2);
// Between attempts to connect: doubles from the first to the last.
constexpr absl::Duration kFirstPause = absl::Milliseconds(10);
constexpr absl::Duration kLastPause = absl::Milliseconds(500);

// What a call waits for.
struct Answer {
  absl::Notification given;
  absl::StatusOr<std::string> value;
};

class StoreClient final : public Store {
 public:
  StoreClient(Socket socket, const StoreHandshake& handshake, std::string where)
      : socket_(std::move(socket)),
        where_(std::move(where)),
        sealer_(handshake, FrameCodec::kToServer),
        reader_([this, opener = FrameCodec(handshake, FrameCodec::kToClient)] {
          Read(opener);
        }) {}

  ~StoreClient() override {
    shutdown(socket_.fd(), SHUT_RDWR);
    if (reader_.joinable()) reader_.join();
  }

  void Start(Op op, const std::string& key, const std::string& value,
             Done done) override {
    static_cast<void>(StartCall(op, key, value, std::move(done)));
  }

  absl::StatusOr<std::string> Get(const std::string& key,
                                  absl::Duration timeout) override {
    auto answer = std::make_shared<Answer>();
    const uint64_t id = StartCall(Op::kGet, key, "",
                                  [answer](absl::StatusOr<std::string> value) {
                                    answer->value = std::move(value);
                                    answer->given.Notify();
                                  });
    if (answer->given.WaitForNotificationWithTimeout(timeout)) {
      return std::move(answer->value);
    }
    if (Forget(id)) {
      Send({.id = id, .op = StoreRequest::kForget});
      return absl::DeadlineExceededError(
          absl::StrCat("nobody set \"", key, "\" in ", where_, " within ",
                       absl::FormatDuration(timeout)));
    }
    answer->given.WaitForNotification();  // it is just coming
    return std::move(answer->value);
  }

  void Close() override {
    {
      absl::MutexLock lock(&mutex_);
      if (closed_) return;
      closed_ = true;
    }
    // The server ends the connection when it has read this.
    Send({.op = StoreRequest::kClose});
    ended_.WaitForNotificationWithTimeout(kLeave);
    shutdown(socket_.fd(), SHUT_RDWR);
    reader_.join();
  }

 private:
  // The call's id, or 0 when `done` has been called already.
  uint64_t StartCall(Op op, const std::string& key, const std::string& value,
                     Done done) {
    StoreRequest request = {.key = key, .value = value};
    switch (op) {
      case Op::kSet:
        request.op = StoreRequest::kSet;
        break;
      case Op::kSetOnce:
        request.op = StoreRequest::kSetOnce;
        break;
      case Op::kGet:
        request.op = StoreRequest::kGet;
        break;
      case Op::kAdd:
        request.op = StoreRequest::kAdd;
        break;
    }
    absl::Status wrong;
    if (request.Encode().size() > kMaxStoreMessageBytes) {
      wrong = absl::InvalidArgumentError(
          absl::StrCat("\"", key.substr(0, 40), "\": ", value.size(),
                       " bytes, wanted ", "at most 1 MiB"));
    } else {
      absl::MutexLock lock(&mutex_);
      if (closed_) {
        wrong = Closed();
      } else if (!lost_.ok()) {
        wrong = lost_;
      } else {
        request.id = ++last_id_;
        pending_[request.id] = std::move(done);
      }
    }
    if (!wrong.ok()) {
      done(wrong);
      return 0;
    }
    Send(request);
    return request.id;
  }

  absl::Status Closed() const {
    return absl::CancelledError(absl::StrCat("this rank has left ", where_));
  }

  // False if its `done` is being called or has been.
  bool Forget(uint64_t id) {
    absl::MutexLock lock(&mutex_);
    return pending_.erase(id) > 0;
  }

  // A connection that cannot be written to is over: the reader says so.
  void Send(const StoreRequest& request) {
    absl::MutexLock lock(&send_mutex_);
    if (!SendAll(socket_, sealer_.Seal(request.Encode())).ok()) {
      shutdown(socket_.fd(), SHUT_RDWR);
    }
  }

  void Read(FrameCodec opener) {
    std::string bytes, body, chunk(1 << 16, '\0');
    absl::Status end = absl::UnavailableError(absl::StrCat(where_, " is gone"));
    for (bool reading = true; reading;) {
      const ssize_t got = recv(socket_.fd(), chunk.data(), chunk.size(), 0);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) break;
      bytes.append(chunk, 0, got);
      while (reading) {
        const absl::StatusOr<bool> opened = opener.Open(bytes, body);
        if (opened.ok() && !*opened) break;
        const absl::StatusOr<StoreReply> reply =
            opened.ok() ? StoreReply::Decode(body) : opened.status();
        if (reply.ok()) {
          Deliver(*reply);
        } else {
          end = absl::UnavailableError(
              absl::StrCat(where_, " sent ", reply.status().message()));
          reading = false;
        }
      }
    }
    shutdown(socket_.fd(), SHUT_RDWR);
    std::map<uint64_t, Done> unanswered;
    {
      absl::MutexLock lock(&mutex_);
      if (closed_) end = Closed();
      lost_ = end;
      unanswered.swap(pending_);
    }
    for (auto& [id, done] : unanswered) done(end);
    ended_.Notify();
  }

  void Deliver(const StoreReply& reply) {
    Done done;
    {
      absl::MutexLock lock(&mutex_);
      const auto found = pending_.find(reply.id);
      if (found == pending_.end()) return;  // forgotten
      done = std::move(found->second);
      pending_.erase(found);
    }
    if (reply.code == absl::StatusCode::kOk) {
      done(reply.value);
    } else {
      done(absl::Status(reply.code, reply.value));
    }
  }

  const Socket socket_;
  const std::string where_;
  absl::Mutex send_mutex_;  // keeps frames in the order of their counters
  FrameCodec sealer_ ABSL_GUARDED_BY(send_mutex_);
  absl::Mutex mutex_;
  std::map<uint64_t, Done> pending_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);
  absl::Notification ended_;
  std::thread reader_;  // last: it uses the others
};

// Starts a call and waits for it. What it waits with outlives a call given up.
absl::StatusOr<std::string> Call(Store& store, Store::Op op,
                                 const std::string& key,
                                 const std::string& value) {
  auto answer = std::make_shared<Answer>();
  store.Start(op, key, value, [answer](absl::StatusOr<std::string> result) {
    answer->value = std::move(result);
    answer->given.Notify();
  });
  if (!answer->given.WaitForNotificationWithTimeout(kPatience)) {
    return absl::DeadlineExceededError(
        absl::StrCat("rank 0's store does not answer \"", key, "\" within ",
                     absl::FormatDuration(kPatience)));
  }
  return std::move(answer->value);
}

// One attempt. kPermissionDenied and kFailedPrecondition are final.
absl::StatusOr<std::unique_ptr<Store>> ConnectOnce(const std::string& host,
                                                   int port,
                                                   StoreHandshake handshake,
                                                   const std::string& where,
                                                   absl::Time deadline) {
  MIMO_ASSIGN_OR_RETURN(Socket socket, ConnectTo(host, port, deadline));
  MIMO_ASSIGN_OR_RETURN(const std::string hello,
                        ReceiveExactly(socket, kHelloBytes, deadline));
  MIMO_ASSIGN_OR_RETURN(handshake.server_nonce, ReadHello(hello));
  handshake.client_nonce = FreshNonce();
  MIMO_RETURN_IF_ERROR(SendAll(socket, handshake.MakeProof()));
  MIMO_ASSIGN_OR_RETURN(const std::string verdict,
                        ReceiveExactly(socket, kVerdictBytes, deadline));
  MIMO_RETURN_IF_ERROR(handshake.ReadVerdict(verdict));
  return std::make_unique<StoreClient>(std::move(socket), handshake, where);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> Store::Connect(const std::string& host,
                                                      int port,
                                                      const std::string& key,
                                                      int rank,
                                                      absl::Duration timeout) {
  const std::string where =
      absl::StrCat("rank 0's store at ", HostPort(host, port));
  if (key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": no key"));
  }
  const StoreHandshake handshake = {.key = key,
                                    .rank = static_cast<uint32_t>(rank)};
  const absl::Time deadline = absl::Now() + timeout;
  absl::Duration pause = kFirstPause;
  while (true) {
    auto store = ConnectOnce(host, port, handshake, where, deadline);
    if (store.ok()) return store;
    const absl::Status& why = store.status();
    if (absl::IsPermissionDenied(why) || absl::IsFailedPrecondition(why)) {
      return absl::Status(why.code(), absl::StrCat(where, ": ", why.message()));
    }
    if (absl::Now() + pause >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(where, ": ", why.message(), ", tried for ",
                       absl::FormatDuration(timeout)));
    }
    absl::SleepFor(pause);
    pause = std::min(2 * pause, kLastPause);
  }
}

absl::Status Store::Set(const std::string& key, const std::string& value) {
  return Call(*this, Op::kSet, key, value).status();
}

absl::StatusOr<std::string> Store::SetOnce(const std::string& key,
                                           const std::string& value) {
  return Call(*this, Op::kSetOnce, key, value);
}

absl::StatusOr<int64_t> Store::Add(const std::string& key, int64_t amount) {
  MIMO_ASSIGN_OR_RETURN(const std::string sum,
                        Call(*this, Op::kAdd, key, absl::StrCat(amount)));
  int64_t value;
  CHECK(absl::SimpleAtoi(sum, &value)) << sum;
  return value;
}

}  // namespace mimo
