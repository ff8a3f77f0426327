// SHA-256 (FIPS 180-4) and HMAC-SHA256 (RFC 2104): what the store's messages
// are authenticated with.
#ifndef MIMO_COMM_RENDEZVOUS_SHA256_H_
#define MIMO_COMM_RENDEZVOUS_SHA256_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace mimo {

inline constexpr size_t kSha256Bytes = 32;

// Both return kSha256Bytes bytes.
std::string Sha256(absl::string_view message);
std::string HmacSha256(absl::string_view key, absl::string_view message);

// a == b, in a time that does not tell where they differ.
bool EqualInConstantTime(absl::string_view a, absl::string_view b);

}  // namespace mimo

#endif  // MIMO_COMM_RENDEZVOUS_SHA256_H_
