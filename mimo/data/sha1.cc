#include "mimo/data/sha1.h"

#include <bit>
#include <string>

namespace mimo {

std::array<uint8_t, 20> Sha1(std::string_view text) {
  std::string message(text);
  message += '\x80';
  while (message.size() % 64 != 56) message += '\0';
  for (int i = 7; i >= 0; --i) {
    message += static_cast<char>(uint64_t{text.size()} * 8 >> (8 * i));
  }
  uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
  for (size_t block = 0; block < message.size(); block += 64) {
    uint32_t w[80];
    for (int t = 0; t < 16; ++t) {
      w[t] = 0;
      for (int i = 0; i < 4; ++i) {
        w[t] = w[t] << 8 | static_cast<uint8_t>(message[block + 4 * t + i]);
      }
    }
    for (int t = 16; t < 80; ++t) {
      w[t] = std::rotl(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    }
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int t = 0; t < 80; ++t) {
      const uint32_t f = t < 20   ? ((b & c) | (~b & d)) + 0x5a827999
                         : t < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                         : t < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc
                                  : (b ^ c ^ d) + 0xca62c1d6;
      const uint32_t next = std::rotl(a, 5) + f + e + w[t];
      e = d;
      d = c;
      c = std::rotl(b, 30);
      b = a;
      a = next;
    }
    h[0] += a;
    h[1] += b;
    h[2] += c;
    h[3] += d;
    h[4] += e;
  }
  std::array<uint8_t, 20> digest;
  for (int i = 0; i < 20; ++i) digest[i] = h[i / 4] >> (24 - 8 * (i % 4));
  return digest;
}

uint32_t Sha1QuotientModulo(std::string_view text, uint32_t divisor,
                            uint32_t modulus) {
  // Long division, byte by byte; the quotient is only needed modulo `modulus`.
  uint32_t rest = 0;
  uint64_t quotient = 0;
  for (const uint8_t byte : Sha1(text)) {
    const uint32_t value = rest << 8 | byte;
    quotient = (quotient << 8 | value / divisor) % modulus;
    rest = value % divisor;
  }
  return static_cast<uint32_t>(quotient);
}

}  // namespace mimo
