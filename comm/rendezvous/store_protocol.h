// What the store's two sides say to each other, as bytes. Integers are little
// endian.
//
//   server -> client  Hello: magic [16], the server's nonce [32]
//   client -> server  Proof: magic [16], the client's nonce [32], rank [4],
//                     HMAC(key, "client", nonces, rank) [32]
//   server -> client  Verdict: 'y', HMAC(key, "server", nonces, rank) [32],
//                     or 'n', zeros [32], and the end
//   then both ways    frames: size [4], body [size <= 1 MiB], MAC [32]
//
// The MAC is HMAC(session, direction, counter, body) with session = HMAC(key,
// "session", nonces, rank) and a counter of the direction's frames: one that is
// changed, repeated, left out or turned around does not fit. Values are not
// encrypted.
#ifndef MIMO_COMM_RENDEZVOUS_STORE_PROTOCOL_H_
#define MIMO_COMM_RENDEZVOUS_STORE_PROTOCOL_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mimo {

inline constexpr size_t kNonceBytes = 32;
inline constexpr size_t kHelloBytes = 16 + kNonceBytes;
inline constexpr size_t kProofBytes = 16 + kNonceBytes + 4 + 32;
inline constexpr size_t kVerdictBytes = 1 + 32;
inline constexpr size_t kMaxStoreMessageBytes = 1 << 20;

// kNonceBytes from the system's random generator.
std::string FreshNonce();

std::string MakeHello(absl::string_view server_nonce);
// The server's nonce.
absl::StatusOr<std::string> ReadHello(absl::string_view hello);

// What both sides know of a connection once it is set up.
struct StoreHandshake {
  std::string key, server_nonce, client_nonce;
  uint32_t rank = 0;

  std::string MakeProof() const;
  // Fills client_nonce and rank. Errors: kInvalidArgument for what is no proof,
  // kPermissionDenied for one made with another key.
  absl::Status ReadProof(absl::string_view proof);
  std::string MakeVerdict() const;
  static std::string MakeRefusal();
  // kPermissionDenied: a refusal, or a server that does not know the key.
  absl::Status ReadVerdict(absl::string_view verdict) const;

  std::string Mac(absl::string_view label) const;
};

// The frames of one direction of one connection.
class FrameCodec {
 public:
  enum Direction : char { kToServer = 'c', kToClient = 's' };
  FrameCodec(const StoreHandshake& handshake, Direction direction)
      : session_(handshake.Mac("session")), direction_(direction) {}

  std::string Seal(absl::string_view body);
  // Takes the next frame off the front of `bytes` and puts its body into
  // `body`; false when it is not all there. Errors: too long, a wrong MAC.
  absl::StatusOr<bool> Open(std::string& bytes, std::string& body);

 private:
  std::string Mac(absl::string_view body) const;

  std::string session_;
  Direction direction_;
  uint64_t counter_ = 0;
};

struct StoreRequest {
  enum Op : uint8_t { kSet, kSetOnce, kGet, kAdd, kForget, kClose };
  uint64_t id = 0;  // answers carry it; kForget's is that of the forgotten kGet
  Op op = kSet;
  std::string key, value;  // kAdd's value is the amount in decimal

  std::string Encode() const;
  static absl::StatusOr<StoreRequest> Decode(absl::string_view body);
};

struct StoreReply {
  uint64_t id = 0;
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string value;  // or the error's message

  std::string Encode() const;
  static absl::StatusOr<StoreReply> Decode(absl::string_view body);
};

}  // namespace mimo

#endif  // MIMO_COMM_RENDEZVOUS_STORE_PROTOCOL_H_
