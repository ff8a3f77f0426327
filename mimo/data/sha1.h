// SHA-1 of short texts: splits that do not depend on order or platform.
// Source: RFC 3174.
#ifndef MIMO_MIMO_DATA_SHA1_H_
#define MIMO_MIMO_DATA_SHA1_H_

#include <array>
#include <cstdint>
#include <string_view>

namespace mimo {

// Big-endian: byte 0 first, as in the usual hexadecimal form.
std::array<uint8_t, 20> Sha1(std::string_view text);

// The whole 160-bit digest as one integer: its quotient by `divisor`, modulo
// `modulus` (both below 2^24).
uint32_t Sha1QuotientModulo(std::string_view text, uint32_t divisor,
                            uint32_t modulus);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_SHA1_H_
