#include "comm/gloo/mesh.h"

#include <netdb.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "comm/rendezvous/store_board.h"
#include "gloo/common/error.h"
#include "gloo/transport/tcp/pair.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// How often who waits for a connection looks whether the world has failed.
constexpr std::chrono::milliseconds kLook(50);
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

namespace tcp = gloo::transport::tcp;

struct TcpDevice final : tcp::Device {
  using tcp::Device::connect;
  using tcp::Device::Device;
};

// gloo's, but for how it connects: gloo waits for the other end whatever else
// happens, calls pairs that are no more, and ends the process if a connection
// ends at once.
class TcpPair final : public tcp::Pair {
 public:
  using tcp::Pair::Pair;
  ~TcpPair() override {
    {
      absl::MutexLock lock(&living_->mutex);
      living_->pair = nullptr;
    }
    // Here, as the device's thread may call it until then.
    std::lock_guard<std::mutex> lock(m_);
    if (state_ != CLOSED) changeState(CLOSED);
  }

  // Returns, not connected, once `over`. May throw.
  void Connect(const std::vector<char>& bytes, absl::FunctionRef<bool()> over) {
    std::unique_lock<std::mutex> lock(m_);
    state_ = CONNECTING;
    static_cast<TcpDevice*>(device_)->connect(
        self_, tcp::Address(bytes), timeout_,
        [living = living_](std::shared_ptr<tcp::Socket> socket,
                           const tcp::Error& error) {
          absl::MutexLock lock(&living->mutex);
          if (living->pair == nullptr) return;
          try {
            living->pair->connectCallback(std::move(socket), error);
          } catch (const std::exception& e) {
            living->pair->signalExceptionExternal(e.what());
          }
        });
    const auto connected = [&] {
      throwIfException();
      return state_ != CONNECTING;
    };
    while (!cv_.wait_for(lock, kLook, connected) && !over()) {
    }
  }

 private:
  struct Living {
    absl::Mutex mutex;
    TcpPair* pair;
  };
  const std::shared_ptr<Living> living_{new Living{.pair = this}};
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

absl::StatusOr<std::shared_ptr<tcp::Device>> ListenTowards(
    const std::string& host) {
  const absl::StatusOr<std::string> address = AddressTowards(host);
  if (!address.ok()) return address.status();
  signal(SIGPIPE, SIG_IGN);
  try {
    tcp::attr attributes;
    attributes.hostname = *address;
    return std::make_shared<TcpDevice>(tcp::CreateDeviceAttr(attributes));
  } catch (const std::exception& e) {
    return GlooError(e.what());
  }
}

absl::StatusOr<std::unique_ptr<Mesh>> Mesh::Connect(
    const std::shared_ptr<tcp::Device>& device, Store& store,
    FailureBoard& board, const std::string& prefix, int rank, int size,
    absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  const auto over = [&] {
    return !board.Raised().empty() || absl::Now() >= deadline;
  };
  auto context = std::make_shared<tcp::Context>(device, rank, size);
  std::vector<TcpPair*> pairs;
  std::string own;  // where each of the others finds this rank
  for (int i = 0; i < size; ++i) {
    auto pair = std::make_unique<TcpPair>(context.get(), device.get(), i,
                                          gloo::kNoTimeout);
    const std::vector<char> end = pair->address().bytes();
    own.append(end.begin(), end.end());
    pairs.push_back(pair.get());
    context->getPair(i) = std::move(pair);
  }
  MIMO_RETURN_IF_ERROR(store.Set(absl::StrCat(prefix, rank), own));
  for (int i = 0; i < size; ++i) {
    if (i == rank) continue;
    const absl::StatusOr<std::string> theirs = GetUnlessFailed(
        store, board, absl::StrCat(prefix, i), deadline - absl::Now());
    absl::Status met = theirs.status();
    if (met.ok()) {
      const size_t length = own.size() / size;
      try {
        const std::string end = theirs->substr(rank * length, length);
        pairs[i]->Connect({end.begin(), end.end()}, over);
      } catch (const std::exception& e) {
        met = OrFailure(board, GlooError(e.what()));
      }
    }
    if (over()) {
      const std::string raised = board.Raised();
      if (!raised.empty()) return absl::AbortedError(raised);
      return absl::DeadlineExceededError(
          absl::StrCat(absl::StripSuffix(prefix, "/"), ": rank ", i,
                       " has not come within ", absl::FormatDuration(timeout)));
    }
    MIMO_RETURN_IF_ERROR(met);
  }
  return std::unique_ptr<Mesh>(new Mesh(std::move(context)));
}

Mesh::Mesh(std::shared_ptr<tcp::Context> context)
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
  for (int i = 0; i < context_->size; ++i) context_->getPair(i)->close();
}

}  // namespace mimo
