#include "comm/rendezvous/store_protocol.h"

#include <sys/random.h>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "comm/rendezvous/sha256.h"

namespace mimo {
namespace {

constexpr absl::string_view kMagic("mimo store 1\n\0\0\0", 16);

template <typename T>
std::string Bytes(T value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof(T); ++i) {
    bytes += static_cast<char>(value >> 8 * i);
  }
  return bytes;
}

// Takes a number off the front of `bytes`, which has enough of them.
template <typename T>
T Take(absl::string_view& bytes) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value |= static_cast<T>(static_cast<uint8_t>(bytes[i])) << 8 * i;
  }
  bytes.remove_prefix(sizeof(T));
  return value;
}

}  // namespace

std::string FreshNonce() {
  std::string nonce(kNonceBytes, '\0');
  CHECK_EQ(getrandom(nonce.data(), nonce.size(), 0),
           static_cast<ssize_t>(nonce.size()));
  return nonce;
}

std::string MakeHello(absl::string_view server_nonce) {
  return absl::StrCat(kMagic, server_nonce);
}

absl::StatusOr<std::string> ReadHello(absl::string_view hello) {
  if (hello.size() != kHelloBytes || hello.substr(0, 16) != kMagic) {
    return absl::FailedPreconditionError("what answers is no store of mimo's");
  }
  return std::string(hello.substr(16));
}

std::string StoreHandshake::Mac(absl::string_view label) const {
  return HmacSha256(
      key, absl::StrCat(label, server_nonce, client_nonce, Bytes(rank)));
}

std::string StoreHandshake::MakeProof() const {
  return absl::StrCat(kMagic, client_nonce, Bytes(rank), Mac("client"));
}

absl::Status StoreHandshake::ReadProof(absl::string_view proof) {
  if (proof.size() != kProofBytes || proof.substr(0, 16) != kMagic) {
    return absl::InvalidArgumentError("it does not speak the store's language");
  }
  client_nonce = std::string(proof.substr(16, kNonceBytes));
  proof.remove_prefix(16 + kNonceBytes);
  rank = Take<uint32_t>(proof);
  if (!EqualInConstantTime(proof, Mac("client"))) {
    return absl::PermissionDeniedError(
        absl::StrCat("rank ", rank, " has another key than this store's"));
  }
  return absl::OkStatus();
}

std::string StoreHandshake::MakeVerdict() const {
  return absl::StrCat("y", Mac("server"));
}

std::string StoreHandshake::MakeRefusal() {
  return absl::StrCat("n", std::string(kVerdictBytes - 1, '\0'));
}

absl::Status StoreHandshake::ReadVerdict(absl::string_view verdict) const {
  CHECK_EQ(verdict.size(), kVerdictBytes);
  if (verdict[0] != 'y') {
    return absl::PermissionDeniedError(
        "the store refused our key, wanted the key of rank 0");
  }
  if (!EqualInConstantTime(verdict.substr(1), Mac("server"))) {
    return absl::PermissionDeniedError(
        "the store does not know our key, so it is not our job's");
  }
  return absl::OkStatus();
}

std::string FrameCodec::Mac(absl::string_view body) const {
  return HmacSha256(session_, absl::StrCat(std::string(1, direction_),
                                           Bytes(counter_), body));
}

std::string FrameCodec::Seal(absl::string_view body) {
  CHECK_LE(body.size(), kMaxStoreMessageBytes);
  std::string frame =
      absl::StrCat(Bytes(static_cast<uint32_t>(body.size())), body, Mac(body));
  ++counter_;
  return frame;
}

absl::StatusOr<bool> FrameCodec::Open(std::string& bytes, std::string& body) {
  absl::string_view rest = bytes;
  if (rest.size() < 4) return false;
  const uint32_t size = Take<uint32_t>(rest);
  if (size > kMaxStoreMessageBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a message of ", size,
                                                   " bytes, wanted at most ",
                                                   kMaxStoreMessageBytes));
  }
  if (rest.size() < size + kSha256Bytes) return false;
  if (!EqualInConstantTime(rest.substr(size, kSha256Bytes),
                           Mac(rest.substr(0, size)))) {
    return absl::InvalidArgumentError(
        "a message that is changed, repeated or out of order");
  }
  ++counter_;
  body.assign(rest.data(), size);
  bytes.erase(0, 4 + size + kSha256Bytes);
  return true;
}

std::string StoreRequest::Encode() const {
  return absl::StrCat(Bytes(id), Bytes(static_cast<uint8_t>(op)),
                      Bytes(static_cast<uint32_t>(key.size())), key, value);
}

absl::StatusOr<StoreRequest> StoreRequest::Decode(absl::string_view body) {
  const absl::Status malformed =
      absl::InvalidArgumentError("a malformed request");
  if (body.size() < 8 + 1 + 4) return malformed;
  StoreRequest request;
  request.id = Take<uint64_t>(body);
  const auto op = Take<uint8_t>(body);
  const auto key_size = Take<uint32_t>(body);
  if (op > kClose || key_size > body.size()) return malformed;
  request.op = static_cast<Op>(op);
  request.key = std::string(body.substr(0, key_size));
  request.value = std::string(body.substr(key_size));
  return request;
}

std::string StoreReply::Encode() const {
  return absl::StrCat(Bytes(id), Bytes(static_cast<uint8_t>(code)), value);
}

absl::StatusOr<StoreReply> StoreReply::Decode(absl::string_view body) {
  if (body.size() < 8 + 1) {
    return absl::InvalidArgumentError("a malformed reply");
  }
  StoreReply reply;
  reply.id = Take<uint64_t>(body);
  reply.code = static_cast<absl::StatusCode>(Take<uint8_t>(body));
  reply.value = std::string(body);
  return reply;
}

}  // namespace mimo
