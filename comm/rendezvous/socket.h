// TCP sockets by name, IPv4 and IPv6, with deadlines in place of endless waits.
#ifndef MIMO_COMM_RENDEZVOUS_SOCKET_H_
#define MIMO_COMM_RENDEZVOUS_SOCKET_H_

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace mimo {

// A file descriptor that is closed with its owner.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

// A non-blocking listener on the first address that `host` names and this
// machine has; port 0 takes a free one. A name (not "localhost") that means the
// loopback device, as Debian's /etc/hosts has the machine's own, listens
// everywhere: the other machines know the name by another address.
absl::StatusOr<Socket> Listen(const std::string& host, int port);
int LocalPort(const Socket& socket);

// A free port of `host` that nobody gets while the socket lives, but for a
// Listen that names it.
absl::StatusOr<Socket> ReservePort(const std::string& host);

// One attempt at each address that `host` names.
absl::StatusOr<Socket> ConnectTo(const std::string& host, int port,
                                 absl::Time deadline);

// Ends that the other side's kernel does not tell of (a machine without power)
// are found out within half a minute; small messages go out at once.
void SetUpConnection(const Socket& socket);

// "10.0.0.7:41234"
std::string PeerName(const Socket& socket);
// "localhost:29500", "[::1]:29500"
std::string HostPort(const std::string& host, int port);

// Blocking sockets. kUnavailable: the other side ended; kDeadlineExceeded.
absl::Status SendAll(const Socket& socket, absl::string_view bytes);
absl::StatusOr<std::string> ReceiveExactly(const Socket& socket, size_t bytes,
                                           absl::Time deadline);

}  // namespace mimo

#endif  // MIMO_COMM_RENDEZVOUS_SOCKET_H_
