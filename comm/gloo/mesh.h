// Mesh: one connection of gloo between each two ranks of a group, and messages
// over them. gloo's exceptions end here.
#ifndef MIMO_COMM_GLOO_MESH_H_
#define MIMO_COMM_GLOO_MESH_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/base/watchdog.h"
#include "comm/rendezvous/store.h"
#include "gloo/transport/tcp/context.h"
#include "gloo/transport/tcp/device.h"
#include "gloo/transport/unbound_buffer.h"

namespace mimo {

// A listening socket at the address from which this machine reaches `host`,
// and the thread that serves its connections.
absl::StatusOr<std::shared_ptr<gloo::transport::tcp::Device>> ListenTowards(
    const std::string& host);

class Mesh {
 public:
  // Connects `size` >= 2 ranks, which find each other under the store's keys
  // `prefix`..., within `timeout` or until the world fails.
  static absl::StatusOr<std::unique_ptr<Mesh>> Connect(
      const std::shared_ptr<gloo::transport::tcp::Device>& device, Store& store,
      FailureBoard& board, const std::string& prefix, int rank, int size,
      absl::Duration timeout);

  // Starts one message. A send waits for its receive: the same slot and number
  // of bytes; of one slot in order.
  void Send(int peer, uint64_t slot, const void* data, int64_t bytes);
  void Receive(int peer, uint64_t slot, void* data, int64_t bytes);
  // Waits for all messages started; false if one failed or by Abort, and from
  // then on for ever. Buffers are not touched after it returns.
  bool Wait();
  // What failed first.
  const absl::Status& error() const { return error_; }

  // From any thread: makes Wait return.
  void Abort();

 private:
  explicit Mesh(std::shared_ptr<gloo::transport::tcp::Context> context);
  void Fail(const char* what);

  const std::shared_ptr<gloo::transport::tcp::Context> context_;
  // All memory, so that no call needs a buffer of its own.
  const std::unique_ptr<gloo::transport::UnboundBuffer> memory_;
  int sends_ = 0, receives_ = 0;  // under way
  absl::Status error_;
};

}  // namespace mimo

#endif  // MIMO_COMM_GLOO_MESH_H_
