#include "mimo/train/event_file.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

// CRC-32C, bit by bit: polynomial 0x1EDC6F41, reflected.
uint32_t Crc32c(const std::string& bytes) {
  uint32_t crc = 0xffffffff;
  for (unsigned char byte : bytes) {
    crc ^= byte;
    for (int i = 0; i < 8; ++i)
      crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
  }
  return ~crc;
}
uint32_t Masked(const std::string& bytes) {
  const uint32_t crc = Crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

template <typename T>
T Take(std::string& bytes) {
  T value;
  EXPECT_GE(bytes.size(), sizeof(T));
  std::memcpy(&value, bytes.data(), sizeof(T));
  bytes.erase(0, sizeof(T));
  return value;
}
uint64_t TakeVarint(std::string& bytes) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const unsigned char byte = Take<unsigned char>(bytes);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
}

// A message's fields by number: raw bytes of length-delimited ones, the eight,
// four or varint value of others.
std::multimap<int, std::string> Fields(std::string message) {
  std::multimap<int, std::string> fields;
  while (!message.empty()) {
    const uint64_t key = TakeVarint(message);
    size_t size;
    switch (key & 7) {
      case 0:
        fields.emplace(key >> 3, std::to_string(TakeVarint(message)));
        continue;
      case 1:
        size = 8;
        break;
      case 2:
        size = TakeVarint(message);
        break;
      case 5:
        size = 4;
        break;
      default:
        ADD_FAILURE() << "wire type " << (key & 7);
        return fields;
    }
    fields.emplace(key >> 3, message.substr(0, size));
    message.erase(0, size);
  }
  return fields;
}

std::string Only(const std::multimap<int, std::string>& fields, int number) {
  EXPECT_EQ(fields.count(number), 1u) << number;
  return fields.count(number) == 1 ? fields.find(number)->second : "";
}
template <typename T>
T As(std::string bytes) {
  EXPECT_EQ(bytes.size(), sizeof(T));
  return Take<T>(bytes);
}

std::vector<std::multimap<int, std::string>> ReadEvents(
    const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  std::string bytes = text.str();
  std::vector<std::multimap<int, std::string>> events;
  while (!bytes.empty()) {
    const std::string header = bytes.substr(0, 8);
    const uint64_t length = Take<uint64_t>(bytes);
    EXPECT_EQ(Take<uint32_t>(bytes), Masked(header));
    const std::string event = bytes.substr(0, length);
    bytes.erase(0, length);
    EXPECT_EQ(Take<uint32_t>(bytes), Masked(event));
    events.push_back(Fields(event));
  }
  return events;
}

TEST(EventFile, DecodesToWhatWasWritten) {
  ASSERT_EQ(Crc32c("123456789"), 0xe3069283u);  // RFC 3720's check value
  const std::string folder = testing::TempDir() + "/event_file_test/logs";
  std::filesystem::remove_all(folder);
  const absl::Time now = absl::FromUnixMillis(1700000000500);
  auto file = EventFile::Open(folder, 8, now);
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string long_name(300, 'n');  // a two-byte length
  ASSERT_TRUE(
      file->Write(8, "", {{"lm_loss", 5.85}, {long_name, -3e-9}}, now).ok());
  ASSERT_TRUE(file->Write(123456789012, "validation/", {{"lm_loss", NAN}},
                          now + absl::Seconds(2))
                  .ok());

  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    paths.push_back(entry.path().string());
  }
  ASSERT_EQ(paths.size(), 1u);
  EXPECT_EQ(paths[0].find(folder + "/events.out.tfevents.1700000000."), 0u)
      << paths[0];
  const auto events = ReadEvents(paths[0]);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(As<double>(Only(events[0], 1)), 1700000000.5);
  EXPECT_EQ(Only(events[0], 3), "brain.Event:2");
  EXPECT_EQ(Only(events[1], 2), "8");  // START: steps from 8 on are repeated
  EXPECT_EQ(Only(Fields(Only(events[1], 7)), 1), "1");

  EXPECT_EQ(As<double>(Only(events[2], 1)), 1700000000.5);
  EXPECT_EQ(Only(events[2], 2), "8");
  std::map<std::string, float> scalars;
  const auto summary = Fields(Only(events[2], 5));
  ASSERT_EQ(summary.count(1), 2u);
  for (auto [it, end] = summary.equal_range(1); it != end; ++it) {
    const auto value = Fields(it->second);
    scalars[Only(value, 1)] = As<float>(Only(value, 2));
  }
  EXPECT_EQ(scalars, (std::map<std::string, float>{{"lm_loss", 5.85f},
                                                   {long_name, -3e-9f}}));

  EXPECT_EQ(As<double>(Only(events[3], 1)), 1700000002.5);
  EXPECT_EQ(Only(events[3], 2), "123456789012");
  const auto value = Fields(Only(Fields(Only(events[3], 5)), 1));
  EXPECT_EQ(Only(value, 1), "validation/lm_loss");
  EXPECT_TRUE(std::isnan(As<float>(Only(value, 2))));
}

TEST(EventFile, AFolderThatCannotBeMade) {
  const std::string file = testing::TempDir() + "/event_file_test_plain_file";
  std::ofstream(file) << "x";
  const auto opened = EventFile::Open(file, 1, absl::Now());
  EXPECT_FALSE(opened.ok());
  EXPECT_NE(opened.status().message().find(file), std::string::npos);
}

}  // namespace
}  // namespace mimo
