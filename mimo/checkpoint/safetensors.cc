#include "mimo/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/atomic_file.h"
#include "mimo/checkpoint/convert.h"

namespace mimo {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxHeaderBytes = 100000000;  // the reference's
constexpr int64_t kLengthBytes = 8;             // before the header
constexpr char kChecksums[] = "crc32c";         // in the metadata

struct DTypeRow {
  absl::string_view name;
  DType dtype;
};
// In the reference's order; files hold the last ones first.
constexpr DTypeRow kDTypes[] = {
    {"BOOL", DType::kUInt8},         {"U8", DType::kUInt8},
    {"F8_E5M2", DType::kFloat8E5M2}, {"F8_E4M3", DType::kFloat8E4M3},
    {"F16", DType::kFloat16},        {"BF16", DType::kBFloat16},
    {"I32", DType::kInt32},          {"F32", DType::kFloat32},
    {"F64", DType::kFloat64},        {"I64", DType::kInt64},
};

int Rank(DType dtype) {
  int rank = std::size(kDTypes) - 1;
  while (kDTypes[rank].dtype != dtype) --rank;
  return rank;
}

// Whole numbers >= 0, at most `max`, in a JSON list.
bool ReadSizes(const Json& json, std::vector<int64_t>& out) {
  if (!json.is_array()) return false;
  for (const Json& value : json) {
    if (!value.is_number_unsigned() ||
        value.get<uint64_t>() > std::numeric_limits<int64_t>::max()) {
      return false;
    }
    out.push_back(value.get<int64_t>());
  }
  return true;
}

// Bytes of the shape; nothing when they pass int64.
std::optional<int64_t> Bytes(const Shape& shape, DType dtype) {
  int64_t bytes = SizeOf(dtype);
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  for (int64_t dim : shape) {
    if (__builtin_mul_overflow(bytes, dim, &bytes)) return {};
  }
  return bytes;
}

// Of JSON, also of text that is not UTF-8.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

absl::string_view SafeTensorsDType(DType dtype) {
  return kDTypes[Rank(dtype)].name;
}

std::optional<DType> DTypeFromSafeTensors(absl::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
  }
  return {};
}

absl::StatusOr<SafeTensors> SafeTensors::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    if (errno == ENOENT) {
      return absl::NotFoundError(absl::StrCat(path, ": no such file"));
    }
    return FileError(path, "read", errno);
  }
  struct stat info;
  const bool known = fstat(fd, &info) == 0;
  const int64_t size = known && S_ISREG(info.st_mode) ? info.st_size : -1;
  void* memory = size >= kLengthBytes
                     ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0)
                     : nullptr;
  const int error = errno;
  close(fd);
  if (size < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ",
        known && S_ISDIR(info.st_mode) ? "a directory" : "not a regular file",
        ", wanted a safetensors file"));
  }
  if (size < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", size, " bytes, wanted a safetensors file"));
  }
  if (memory == MAP_FAILED) return FileError(path, "map", error);

  SafeTensors file;
  file.path_ = path;
  file.mapping_ = std::shared_ptr<const char>(
      static_cast<const char*>(memory),
      [size](const char* p) { munmap(const_cast<char*>(p), size); });
  uint64_t header_bytes;
  std::memcpy(&header_bytes, memory, kLengthBytes);
  if (header_bytes > kMaxHeaderBytes ||
      static_cast<int64_t>(header_bytes) > size - kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": truncated or not a safetensors file: a header of ",
        header_bytes, " bytes in a file of ", size, ", wanted at most ",
        std::min(kMaxHeaderBytes, size - kLengthBytes)));
  }
  file.data_begin_ = kLengthBytes + static_cast<int64_t>(header_bytes);
  MIMO_RETURN_IF_ERROR(
      file.ParseHeader({file.mapping_.get() + kLengthBytes, header_bytes},
                       size - file.data_begin_));
  return file;
}

absl::Status SafeTensors::ParseHeader(absl::string_view header,
                                      int64_t data_bytes) {
  auto error = [&](absl::string_view name, const auto&... rest) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": tensor ", name, ": ", rest...));
  };
  const Json json = Json::parse(header.begin(), header.end(), nullptr, false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_,
                     ": the header is not a JSON object, wanted a "
                     "safetensors file"));
  }
  struct Range {
    int64_t begin, end;
    std::string name;
  };
  std::vector<Range> ranges;
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return error(name, "not an object of text");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) return error(name, key, ": not text");
        metadata_[key] = text.get<std::string>();
      }
      continue;
    }
    if (!value.is_object()) return error(name, "its header is no object");
    const Json dtype_json = value.value("dtype", Json());
    const std::string dtype_name =
        dtype_json.is_string() ? dtype_json.get<std::string>() : "none";
    const std::optional<DType> dtype = DTypeFromSafeTensors(dtype_name);
    if (!dtype) {
      std::string known;
      for (const DTypeRow& row : kDTypes) {
        absl::StrAppend(&known, known.empty() ? "" : " | ", row.name);
      }
      return error(name, "dtype ", dtype_name, ", wanted ", known);
    }
    std::vector<int64_t> dims, offsets;
    if (!ReadSizes(value.value("shape", Json()), dims)) {
      return error(name, "no shape, wanted a list of sizes");
    }
    if (!ReadSizes(value.value("data_offsets", Json()), offsets) ||
        offsets.size() != 2) {
      return error(name, "no data_offsets, wanted [begin, end]");
    }
    const Shape shape(dims.begin(), dims.end());
    const std::optional<int64_t> bytes = Bytes(shape, *dtype);
    if (!bytes || offsets[1] - offsets[0] != *bytes) {
      return error(name, "data_offsets ", ToString(offsets), ", wanted ",
                   bytes ? absl::StrCat(*bytes) : "fewer", " bytes for ",
                   ToString(shape), " ", dtype_name);
    }
    if (offsets[1] > data_bytes) {
      return error(name, "ends at byte ", offsets[1], " of ", data_bytes,
                   ", the file is truncated");
    }
    ranges.push_back({offsets[0], offsets[1], name});
    tensors_[name] = {name, *dtype, shape, offsets[0]};
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t end = 0;
  for (const Range& range : ranges) {
    if (range.begin != end) {
      return error(range.name, "begins at byte ", range.begin, ", wanted ", end,
                   ", where the one before ends");
    }
    end = range.end;
  }
  if (end != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", data_bytes,
                                                   " bytes of tensors, wanted ",
                                                   end, " as its header says"));
  }
  return ParseChecksums();
}

absl::Status SafeTensors::ParseChecksums() {
  const auto text = metadata_.extract(kChecksums);
  if (text.empty()) return absl::OkStatus();
  const Json json = Json::parse(text.mapped(), nullptr, false);
  for (auto& [name, info] : tensors_) {
    const Json found = json.is_object() ? json.value(name, Json()) : Json();
    uint32_t checksum;
    if (!found.is_string() ||
        !absl::SimpleHexAtoi(found.get<std::string>(), &checksum)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": __metadata__.", kChecksums,
                       ": not a checksum for tensor ", name));
    }
    info.checksum = absl::crc32c_t(checksum);
  }
  return absl::OkStatus();
}

absl::Status SafeTensors::Check(const SafeTensorInfo& info) const {
  if (!info.checksum) return absl::OkStatus();
  const absl::crc32c_t found = absl::ComputeCrc32c(
      {static_cast<const char*>(Data(info)),
       static_cast<size_t>(NumElements(info.shape) * SizeOf(info.dtype))});
  if (found == *info.checksum) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path_, ": tensor ", info.name, ": damaged: bytes of CRC32C ",
                   found, ", wanted ", *info.checksum));
}

const SafeTensorInfo* SafeTensors::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::StatusOr<Tensor> SafeTensors::Load(const std::string& name,
                                         Allocator& allocator,
                                         std::optional<DType> dtype) const {
  const SafeTensorInfo* info = Find(name);
  if (info == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(path_, ": no tensor ", name, ", wanted it"));
  }
  Tensor out(allocator, info->shape, dtype.value_or(info->dtype));
  MIMO_RETURN_IF_ERROR(LoadInto(name, out));
  return out;
}

absl::Status SafeTensors::LoadInto(const std::string& name,
                                   const Tensor& out) const {
  const SafeTensorInfo* info = Find(name);
  if (info == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(path_, ": no tensor ", name, ", wanted it"));
  }
  if (info->shape != out.shape()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": tensor ", name, ": ", ToString(info->shape),
                     ", wanted ", ToString(out.shape())));
  }
  MIMO_RETURN_IF_ERROR(Check(*info));
  // To a GPU by way of a piece that stays in the host's cache.
  constexpr int64_t kPiece = 1 << 20;
  Allocator host;
  const bool on_host = out.device() == Device::kCpu;
  const int64_t most = on_host ? out.numel() : std::min(kPiece, out.numel());
  const Tensor flat = out.Reshape({out.numel()});
  const Tensor piece = on_host ? flat : Tensor(host, {most}, out.dtype());
  for (int64_t at = 0; at < out.numel(); at += most) {
    const int64_t count = std::min(most, out.numel() - at);
    const absl::Status status = ConvertElements(
        static_cast<const char*>(Data(*info)) + at * SizeOf(info->dtype),
        info->dtype, piece.data(), out.dtype(), count);
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat(path_, ": tensor ", name,
                                                      ": ", status.message()));
    }
    if (!on_host) flat.Rows(at, at + count).CopyFrom(piece.Rows(0, count));
  }
  return absl::OkStatus();
}

absl::Status WriteSafeTensors(
    const std::string& path, std::vector<SafeTensorToWrite> tensors,
    const std::map<std::string, std::string>& metadata, bool checksums) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(-Rank(a.dtype), a.name) <
           std::pair(-Rank(b.dtype), b.name);
  });
  Json header = Json::object();
  for (const auto& [key, value] : metadata) {
    header["__metadata__"][key] = value;
  }
  Json sums = Json::object();
  if (checksums) header["__metadata__"][kChecksums] = "";
  int64_t end = 0;
  for (const SafeTensorToWrite& entry : tensors) {
    CHECK(!header.contains(entry.name)) << entry.name;
    const int64_t begin = end;
    end += entry.tensor.numel() * SizeOf(entry.dtype);
    Json& json = header[entry.name];
    json["dtype"] = std::string(SafeTensorsDType(entry.dtype));
    json["shape"] = std::vector<int64_t>(entry.tensor.shape().begin(),
                                         entry.tensor.shape().end());
    json["data_offsets"] = {begin, end};
    sums[entry.name] = absl::StrCat(absl::crc32c_t(0));
  }
  // As long with these checksums as with any others.
  const auto header_text = [&] {
    if (checksums) header["__metadata__"][kChecksums] = Dump(sums);
    std::string text = Dump(header);
    text.append((8 - text.size() % 8) % 8, ' ');  // data begin on 8 bytes
    return text;
  };

  MIMO_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  const std::string text = header_text();
  const uint64_t header_bytes = text.size();
  MIMO_RETURN_IF_ERROR(file.Write(&header_bytes, kLengthBytes));
  MIMO_RETURN_IF_ERROR(file.Write(text.data(), header_bytes));
  std::vector<char> converted;
  for (const SafeTensorToWrite& entry : tensors) {
    Allocator host;
    const Tensor here = entry.tensor.device() == Device::kCpu
                            ? entry.tensor
                            : entry.tensor.Clone(host);
    const char* data = static_cast<const char*>(here.data());
    const DType dtype = here.dtype();
    const bool converts = dtype != entry.dtype;
    constexpr int64_t kChunk = 1 << 20;
    if (converts) converted.resize(kChunk * SizeOf(entry.dtype));
    absl::crc32c_t checksum(0);
    for (int64_t at = 0; at < entry.tensor.numel(); at += kChunk) {
      const int64_t count = std::min(kChunk, entry.tensor.numel() - at);
      const char* chunk = data + at * SizeOf(dtype);
      if (converts) {
        CHECK_OK(
            ConvertElements(chunk, dtype, converted.data(), entry.dtype, count))
            << entry.name;
        chunk = converted.data();
      }
      const int64_t bytes = count * SizeOf(entry.dtype);
      MIMO_RETURN_IF_ERROR(file.Write(chunk, bytes));
      if (checksums) {
        checksum =
            absl::ExtendCrc32c(checksum, {chunk, static_cast<size_t>(bytes)});
      }
    }
    sums[entry.name] = absl::StrCat(checksum);
  }
  if (checksums) {
    MIMO_RETURN_IF_ERROR(
        file.WriteAt(kLengthBytes, header_text().data(), header_bytes));
  }
  return file.Commit();
}

absl::Status WriteSafeTensors(
    const std::string& path, const std::map<std::string, Tensor>& tensors,
    const std::map<std::string, std::string>& metadata, bool checksums) {
  std::vector<SafeTensorToWrite> entries;
  for (const auto& [name, tensor] : tensors) {
    entries.push_back({name, tensor, tensor.dtype()});
  }
  return WriteSafeTensors(path, std::move(entries), metadata, checksums);
}

}  // namespace mimo
