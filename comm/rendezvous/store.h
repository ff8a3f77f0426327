// Store: a small table of keys and values on rank 0 through which the processes
// of a job find each other: NCCL's id, gloo's addresses, and word of failures.
//
// Each connection proves that it knows the job's key before it is served, and
// every message after that carries a MAC over a fresh nonce of each side, the
// direction and a counter, so a message can be neither forged nor replayed
// (HMAC-SHA256, RFC 2104). Messages over 1 MiB, malformed or out of order end
// the connection.
#ifndef MIMO_COMM_RENDEZVOUS_STORE_H_
#define MIMO_COMM_RENDEZVOUS_STORE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace mimo {

// The table itself, served by threads of rank 0's process until destroyed.
class StoreServer {
 public:
  // Port 0 takes a free one. Errors: the address is taken or not ours.
  static absl::StatusOr<std::unique_ptr<StoreServer>> Start(
      const std::string& host, int port, const std::string& key);
  virtual ~StoreServer() = default;
  virtual int port() const = 0;
};

// One connection. Calls may come from several threads; a call that waits keeps
// no other waiting.
class Store {
 public:
  // Tries until `timeout` while nobody listens yet; a wrong key is refused at
  // once, with a message here and in the server's log. The server takes the
  // end of this connection without Close for the end of rank `rank`'s process
  // and sets the key "failure" to "rank N's process ended", unless it is set.
  static absl::StatusOr<std::unique_ptr<Store>> Connect(const std::string& host,
                                                        int port,
                                                        const std::string& key,
                                                        int rank,
                                                        absl::Duration timeout);
  virtual ~Store() = default;

  virtual absl::Status Set(const std::string& key,
                           const std::string& value) = 0;
  // Sets the key unless it is set; returns the value it has then.
  virtual absl::StatusOr<std::string> SetOnce(const std::string& key,
                                              const std::string& value) = 0;
  // The value, waiting for it to be set; kDeadlineExceeded after `timeout`,
  // kUnavailable when the server is gone.
  virtual absl::StatusOr<std::string> Get(const std::string& key,
                                          absl::Duration timeout) = 0;
  // Adds to the key's number (0 if unset) and returns the sum.
  virtual absl::StatusOr<int64_t> Add(const std::string& key,
                                      int64_t amount) = 0;
  // Leaves in good order.
  virtual void Close() = 0;
};

}  // namespace mimo

#endif  // MIMO_COMM_RENDEZVOUS_STORE_H_
