#include "comm/gloo/mesh.h"

#include <netdb.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "comm/rendezvous/store_board.h"
#include "gloo/rendezvous/store.h"
#include "gloo/transport/tcp/device.h"

namespace mimo {
namespace {

// gloo's waits end by Abort, which is the watchdog's to call.
constexpr std::chrono::hours kForever(24 * 365);
// Where the buffer of all memory begins: an address is one more than its
// offset (arithmetic on a null pointer is undefined).
constexpr uintptr_t kBegin = 1;

// "[file:line] message" without the place in gloo.
absl::Status GlooError(const char* what) {
  absl::string_view text = what;
  if (const size_t end = text.find("] ");
      text.substr(0, 1) == "[" && end != text.npos)
    text.remove_prefix(end + 2);
  return absl::UnavailableError(absl::StrCat("gloo: ", text));
}

// The store as gloo wants it: errors are exceptions.
class GlooStore final : public gloo::rendezvous::Store {
 public:
  GlooStore(mimo::Store& store, FailureBoard& board, std::string prefix,
            absl::Duration timeout)
      : store_(store),
        board_(board),
        prefix_(std::move(prefix)),
        timeout_(timeout),
        deadline_(absl::Now() + timeout) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    Check(store_.Set(prefix_ + key, std::string(data.begin(), data.end())));
  }
  std::vector<char> get(const std::string& key) override {
    const absl::StatusOr<std::string> value =
        GetUnlessFailed(store_, board_, prefix_ + key, deadline_ - absl::Now());
    if (absl::IsDeadlineExceeded(value.status()))
      Check(absl::DeadlineExceededError(absl::StrCat(
          absl::StripSuffix(prefix_, "/"), ": rank ", key,
          " has not come within ", absl::FormatDuration(timeout_))));
    Check(value.status());
    return {value->begin(), value->end()};
  }
  void wait(const std::vector<std::string>& keys) override {
    for (const std::string& key : keys) get(key);
  }

  // Why the last call threw.
  absl::Status status;

 private:
  void Check(absl::Status s) {
    if (s.ok()) return;
    status = std::move(s);
    throw gloo::IoException(std::string(status.message()));
  }

  mimo::Store& store_;
  FailureBoard& board_;
  const std::string prefix_;
  const absl::Duration timeout_;
  const absl::Time deadline_;
};

// The numeric address from which this machine's packets to `host` start.
absl::StatusOr<std::string> AddressTowards(const std::string& host) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  if (const int error = getaddrinfo(host.c_str(), "1", &hints, &found);
      error != 0)
    return absl::NotFoundError(
        absl::StrCat("host ", host, ": ", gai_strerror(error)));
  const absl::Cleanup free = [found] { freeaddrinfo(found); };
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    const int fd = socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    const absl::Cleanup close_fd = [fd] { close(fd); };
    sockaddr_storage local = {};
    socklen_t length = sizeof(local);
    char name[NI_MAXHOST];
    // A datagram socket sends nothing to connect.
    if (connect(fd, a->ai_addr, a->ai_addrlen) == 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&local), &length) == 0 &&
        getnameinfo(reinterpret_cast<sockaddr*>(&local), length, name,
                    sizeof(name), nullptr, 0, NI_NUMERICHOST) == 0)
      return std::string(name);
  }
  return absl::UnavailableError(
      absl::StrCat("host ", host, ": found no way there, wanted one"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<gloo::transport::Device>> ListenTowards(
    const std::string& host) {
  const absl::StatusOr<std::string> address = AddressTowards(host);
  if (!address.ok()) return address.status();
  signal(SIGPIPE, SIG_IGN);
  try {
    gloo::transport::tcp::attr attributes;
    attributes.hostname = *address;
    return gloo::transport::tcp::CreateDevice(attributes);
  } catch (const std::exception& e) {
    return GlooError(e.what());
  }
}

absl::StatusOr<std::unique_ptr<Mesh>> Mesh::Connect(
    std::shared_ptr<gloo::transport::Device> device, Store& store,
    FailureBoard& board, const std::string& prefix, int rank, int size,
    absl::Duration timeout) {
  GlooStore addresses(store, board, prefix, timeout);
  try {
    auto context = std::make_shared<gloo::rendezvous::Context>(rank, size);
    // gloo waits five times this for a connection.
    context->setTimeout(absl::ToChronoMilliseconds(timeout / 5));
    context->connectFullMesh(addresses, device);
    return std::unique_ptr<Mesh>(new Mesh(std::move(context)));
  } catch (const std::exception& e) {
    return addresses.status.ok() ? OrFailure(board, GlooError(e.what()))
                                 : addresses.status;
  }
}

Mesh::Mesh(std::shared_ptr<gloo::rendezvous::Context> context)
    : context_(std::move(context)),
      memory_(context_->createUnboundBuffer(reinterpret_cast<void*>(kBegin),
                                            SIZE_MAX)) {}

void Mesh::Send(int peer, uint64_t slot, const void* data, int64_t bytes) {
  if (!error_.ok()) return;
  try {
    const uintptr_t offset =
        bytes == 0 ? 0 : reinterpret_cast<uintptr_t>(data) - kBegin;
    memory_->send(peer, slot, offset, bytes);
    ++sends_;
  } catch (const std::exception& e) {
    Fail(e.what());
  }
}

void Mesh::Receive(int peer, uint64_t slot, void* data, int64_t bytes) {
  if (!error_.ok()) return;
  try {
    const uintptr_t offset =
        bytes == 0 ? 0 : reinterpret_cast<uintptr_t>(data) - kBegin;
    memory_->recv(peer, slot, offset, bytes);
    ++receives_;
  } catch (const std::exception& e) {
    Fail(e.what());
  }
}

bool Mesh::Wait() {
  if (!error_.ok()) return false;
  try {
    bool done = true;
    for (; done && receives_ > 0; --receives_)
      done = memory_->waitRecv(nullptr, kForever);
    for (; done && sends_ > 0; --sends_)
      done = memory_->waitSend(nullptr, kForever);
    if (!done) Fail("aborted");
  } catch (const std::exception& e) {
    Fail(e.what());
  }
  return error_.ok();
}

void Mesh::Abort() {
  memory_->abortWaitRecv();
  memory_->abortWaitSend();
}

// A closed connection's thread is done with the messages that were under way.
void Mesh::Fail(const char* what) {
  error_ = GlooError(what);
  sends_ = receives_ = 0;
  try {
    context_->closeConnections();
  } catch (const std::exception&) {  // closed by now
  }
}

}  // namespace mimo
