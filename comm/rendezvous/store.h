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
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace mimo {

// The table itself, served by a thread of rank 0's process until destroyed.
class StoreServer {
 public:
  // Port 0 takes a free one. Errors: no key; the address is taken or not ours.
  static absl::StatusOr<std::unique_ptr<StoreServer>> Start(
      const std::string& host, int port, const std::string& key);
  virtual ~StoreServer() = default;
  virtual int port() const = 0;

  // Waits until `ranks` have come and left, at most `timeout`; whether they
  // did. Ranks take the end of the server for a failure, so rank 0 asks this,
  // after its own Close, before it destroys the server in good order.
  virtual bool AwaitLeave(int ranks, absl::Duration timeout) = 0;
};

// One connection. Calls may come from several threads; a call that waits keeps
// no other waiting. Errors of all: kUnavailable when the server is gone,
// kCancelled after Close, kInvalidArgument for a key and value over 1 MiB
// together, kDeadlineExceeded when the server does not answer.
class Store {
 public:
  // Tries until `timeout` while nobody listens yet; a wrong key is refused at
  // once (kPermissionDenied), with a message here and in the server's log. The
  // server takes the end of this connection without Close for the end of rank
  // `rank`'s process and sets the key "failure" to "rank N's process ended",
  // unless it is set.
  static absl::StatusOr<std::unique_ptr<Store>> Connect(const std::string& host,
                                                        int port,
                                                        const std::string& key,
                                                        int rank,
                                                        absl::Duration timeout);
  virtual ~Store() = default;

  absl::Status Set(const std::string& key, const std::string& value);
  // Sets the key unless it is set; returns the value it has then.
  absl::StatusOr<std::string> SetOnce(const std::string& key,
                                      const std::string& value);
  // The value, waiting for it to be set; kDeadlineExceeded after `timeout`.
  virtual absl::StatusOr<std::string> Get(const std::string& key,
                                          absl::Duration timeout) = 0;
  // Adds to the key's number (0 if unset) and returns the sum.
  absl::StatusOr<int64_t> Add(const std::string& key, int64_t amount);

  // The same without waiting: `done` gets what the call returns (kSet's is ""),
  // once, from a thread of the store's or from this one. It must not wait, nor
  // close or destroy the store.
  enum class Op { kSet, kSetOnce, kGet, kAdd };
  using Done = std::function<void(absl::StatusOr<std::string>)>;
  virtual void Start(Op op, const std::string& key, const std::string& value,
                     Done done) = 0;

  // Leaves in good order.
  virtual void Close() = 0;
};

}  // namespace mimo

#endif  // MIMO_COMM_RENDEZVOUS_STORE_H_
