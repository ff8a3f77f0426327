#include "mimo/train/event_file.h"

#include <unistd.h>

#include <bit>
#include <cstring>

#include "absl/crc/crc32c.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

template <typename T>
std::string LittleEndian(T value) {
  static_assert(std::endian::native == std::endian::little);
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

// Protocol buffer wire form: a field's key is number << 3 | type, with type
// 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) {
    bytes.push_back(static_cast<char>(value | 0x80));
  }
  bytes.push_back(static_cast<char>(value));
  return bytes;
}
std::string VarintField(int number, uint64_t value) {
  return Varint(number << 3) + Varint(value);
}
std::string DoubleField(int number, double value) {
  return Varint(number << 3 | 1) + LittleEndian(value);
}
std::string BytesField(int number, absl::string_view value) {
  return absl::StrCat(Varint(number << 3 | 2), Varint(value.size()), value);
}
std::string FloatField(int number, float value) {
  return Varint(number << 3 | 5) + LittleEndian(value);
}

// Event {double wall_time = 1; int64 step = 2; string file_version = 3;
//        Summary summary = 5; SessionLog session_log = 7;}
// Summary {repeated Value value = 1;}
// Value {string tag = 1; float simple_value = 2;}
// SessionLog {SessionStatus status = 1;}, START = 1
std::string Event(absl::Time now, int64_t step, absl::string_view what) {
  const double wall_time = absl::ToDoubleSeconds(now - absl::UnixEpoch());
  return absl::StrCat(DoubleField(1, wall_time), VarintField(2, step), what);
}

std::string MaskedCrc(absl::string_view bytes) {
  const uint32_t crc = static_cast<uint32_t>(absl::ComputeCrc32c(bytes));
  return LittleEndian<uint32_t>(std::rotr(crc, 15) + 0xa282ead8u);
}

}  // namespace

absl::StatusOr<EventFile> EventFile::Open(const std::string& folder,
                                          int64_t first_step, absl::Time now) {
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  const std::string path =
      absl::StrFormat("%s/events.out.tfevents.%010d.%s.%d.%d", folder,
                      absl::ToUnixSeconds(now), host, getpid(), first_step);
  MIMO_ASSIGN_OR_RETURN(AppendFile append, AppendFile::Open(path, 0));
  EventFile file(std::move(append));
  MIMO_RETURN_IF_ERROR(
      file.WriteRecord(Event(now, 0, BytesField(3, "brain.Event:2"))));
  MIMO_RETURN_IF_ERROR(file.WriteRecord(
      Event(now, first_step, BytesField(7, VarintField(1, 1)))));
  return file;
}

absl::Status EventFile::Write(int64_t step, absl::string_view prefix,
                              const MetricValues& values, absl::Time now) {
  std::string summary;
  for (const auto& [name, value] : values) {
    summary += BytesField(1, BytesField(1, absl::StrCat(prefix, name)) +
                                 FloatField(2, static_cast<float>(value)));
  }
  return WriteRecord(Event(now, step, BytesField(5, summary)));
}

absl::Status EventFile::WriteRecord(absl::string_view event) {
  const std::string length = LittleEndian<uint64_t>(event.size());
  return file_.Append(
      absl::StrCat(length, MaskedCrc(length), event, MaskedCrc(event)));
}

}  // namespace mimo
