#include "comm/rendezvous/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

absl::StatusOr<Addresses> Resolve(const std::string& host, int port) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat("no address of \"", host, "\": ", gai_strerror(error)));
  }
  return Addresses(found, freeaddrinfo);
}

// Turns a loopback address that a name stands for into "every address".
void ListenEverywhere(const std::string& host, addrinfo& address) {
  char unused[sizeof(in6_addr)];
  if (host == "localhost" || inet_pton(AF_INET, host.c_str(), unused) == 1 ||
      inet_pton(AF_INET6, host.c_str(), unused) == 1) {
    return;
  }
  if (address.ai_family == AF_INET) {
    auto& v4 = reinterpret_cast<sockaddr_in*>(address.ai_addr)->sin_addr;
    if (ntohl(v4.s_addr) >> 24 == 127) v4.s_addr = htonl(INADDR_ANY);
  } else if (address.ai_family == AF_INET6) {
    auto& v6 = reinterpret_cast<sockaddr_in6*>(address.ai_addr)->sin6_addr;
    if (IN6_IS_ADDR_LOOPBACK(&v6)) v6 = in6addr_any;
  }
}

void SetOption(const Socket& socket, int level, int option, int value) {
  CHECK_EQ(setsockopt(socket.fd(), level, option, &value, sizeof(value)), 0);
}

absl::Status CannotListen(const std::string& host, int port,
                          absl::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat("cannot listen on ", HostPort(host, port), ": ", why));
}

absl::StatusOr<Socket> Bind(const std::string& host, int port) {
  MIMO_ASSIGN_OR_RETURN(const Addresses addresses, Resolve(host, port));
  std::string error;
  for (addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
    ListenEverywhere(host, *at);
    Socket socket(
        ::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (socket.fd() >= 0) {
      SetOption(socket, SOL_SOCKET, SO_REUSEADDR, 1);
      if (bind(socket.fd(), at->ai_addr, at->ai_addrlen) == 0) return socket;
    }
    error = std::strerror(errno);
  }
  return CannotListen(host, port, error);
}

// Whether the socket is ready for `events` before the deadline.
bool Await(const Socket& socket, short events, absl::Time deadline) {
  while (true) {
    pollfd wait = {socket.fd(), events, 0};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now() +
                                                   absl::Microseconds(999));
    const int ready = poll(&wait, 1, std::clamp<int64_t>(left, 0, 1 << 30));
    if (ready > 0) return true;
    if (ready == 0 && absl::Now() >= deadline) return false;
  }
}

}  // namespace

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

std::string HostPort(const std::string& host, int port) {
  const bool v6 = host.find(':') != std::string::npos;
  return v6 ? absl::StrCat("[", host, "]:", port)
            : absl::StrCat(host, ":", port);
}

absl::StatusOr<Socket> Listen(const std::string& host, int port) {
  MIMO_ASSIGN_OR_RETURN(Socket socket, Bind(host, port));
  if (listen(socket.fd(), SOMAXCONN) == 0) return socket;
  return CannotListen(host, port, std::strerror(errno));
}

// Linux lets several sockets with SO_REUSEADDR have a port while none listens,
// and one of them listen.
absl::StatusOr<Socket> ReservePort(const std::string& host) {
  return Bind(host, 0);
}

int LocalPort(const Socket& socket) {
  sockaddr_storage address;
  socklen_t size = sizeof(address);
  CHECK_EQ(
      getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &size),
      0);
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                   : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
}

absl::StatusOr<Socket> ConnectTo(const std::string& host, int port,
                                 absl::Time deadline) {
  MIMO_ASSIGN_OR_RETURN(const Addresses addresses, Resolve(host, port));
  std::string reason;
  for (addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
    Socket socket(
        ::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    int error = 0;
    if (socket.fd() < 0) {
      error = errno;
    } else if (connect(socket.fd(), at->ai_addr, at->ai_addrlen) != 0) {
      error = errno;
      if (error == EINPROGRESS) {
        socklen_t size = sizeof(error);
        if (!Await(socket, POLLOUT, deadline)) {
          error = ETIMEDOUT;
        } else {
          getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
        }
      }
    }
    if (error == 0) {
      // Blocking from here on.
      CHECK_EQ(fcntl(socket.fd(), F_SETFL, 0), 0);
      SetUpConnection(socket);
      return socket;
    }
    reason = std::strerror(error);
  }
  return absl::UnavailableError(reason);
}

void SetUpConnection(const Socket& socket) {
  SetOption(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(socket, IPPROTO_TCP, TCP_KEEPIDLE, 10);  // s
  SetOption(socket, IPPROTO_TCP, TCP_KEEPINTVL, 5);  // s
  SetOption(socket, IPPROTO_TCP, TCP_KEEPCNT, 4);
  SetOption(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, 30000);  // ms
}

std::string PeerName(const Socket& socket) {
  sockaddr_storage address;
  socklen_t size = sizeof(address);
  char host[NI_MAXHOST], port[NI_MAXSERV];
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (getpeername(socket.fd(), generic, &size) != 0 ||
      getnameinfo(generic, size, host, sizeof(host), port, sizeof(port),
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "a peer that is gone";
  }
  return absl::StrCat(host, ":", port);
}

absl::Status SendAll(const Socket& socket, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent =
        send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      bytes.remove_prefix(sent);
    } else if (errno != EINTR) {
      return absl::UnavailableError(std::strerror(errno));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReceiveExactly(const Socket& socket, size_t bytes,
                                           absl::Time deadline) {
  std::string received(bytes, '\0');
  size_t have = 0;
  while (have < bytes) {
    if (!Await(socket, POLLIN, deadline)) {
      return absl::DeadlineExceededError("no answer");
    }
    const ssize_t got =
        recv(socket.fd(), received.data() + have, bytes - have, 0);
    if (got == 0 || (got < 0 && errno != EINTR)) {
      return absl::UnavailableError("it hung up");
    }
    if (got > 0) have += got;
  }
  return received;
}

}  // namespace mimo
