#include "mimo/data/sha1.h"

#include <cstdio>
#include <string>

#include "gtest/gtest.h"

namespace mimo {
namespace {

std::string Hex(std::string_view text) {
  std::string out;
  for (const uint8_t byte : Sha1(text)) {
    char hex[3];
    std::snprintf(hex, sizeof(hex), "%02x", byte);
    out += hex;
  }
  return out;
}

TEST(Sha1, KnownDigests) {  // FIPS 180 examples, and paddings of 1 and 2 blocks
  EXPECT_EQ(Hex(""), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
  EXPECT_EQ(Hex("abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
  EXPECT_EQ(Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "84983e441c3bd26ebaae4aa1f95129e5e54670f1");
  EXPECT_EQ(Hex(std::string(55, 'a')),
            "c1c8bbdc22796e28c0e15163d20899b65621d65a");
  EXPECT_EQ(Hex(std::string(64, 'a')),
            "0098ba824b5c16427bd7a1122a5a442a25ec644d");
}

// int(hashlib.sha1(b"IT").hexdigest(), 16) // divisor % modulus
TEST(Sha1, QuotientModulo) {
  EXPECT_EQ(Sha1QuotientModulo("IT", 1, 10), 7u);
  EXPECT_EQ(Sha1QuotientModulo("IT", 10, 4), 1u);
  EXPECT_EQ(Sha1QuotientModulo("FR", 10, 3), 0u);
  EXPECT_EQ(Sha1QuotientModulo("ZW", 7, 10007), 5958u);
}

}  // namespace
}  // namespace mimo
