#include "mimo/data/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "mimo/checkpoint/atomic_file.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using FilePtr = std::unique_ptr<std::FILE, Close>;

}  // namespace

bool Exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  if (!Exists(path)) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  std::error_code error;
  if (fs::is_directory(path, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a directory, wanted a file"));
  }
  FilePtr file(std::fopen(path.c_str(), "rb"));
  if (!file) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  }
  std::string bytes;
  char buffer[1 << 16];
  while (size_t n = std::fread(buffer, 1, sizeof(buffer), file.get())) {
    bytes.append(buffer, n);
  }
  if (std::ferror(file.get())) {
    return absl::InternalError(
        absl::StrCat(path, ": reading failed: ", std::strerror(errno)));
  }
  return bytes;
}

absl::StatusOr<std::shared_ptr<const std::string_view>> MapFile(
    const std::string& path) {
  std::error_code error;
  const bool regular = fs::is_regular_file(path, error);
  if (const size_t size = regular ? fs::file_size(path, error) : 0; size > 0) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return FileError(path, "read", errno);
    void* memory = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    const int cause = errno;
    close(fd);
    if (memory == MAP_FAILED) return FileError(path, "map", cause);
    return std::shared_ptr<const std::string_view>(
        new std::string_view(static_cast<const char*>(memory), size),
        [memory](const std::string_view* text) {
          munmap(memory, text->size());
          delete text;
        });
  }
  // A pipe, or nothing to map.
  auto text = ReadFile(path);
  if (!text.ok()) return text.status();
  struct Owner {
    std::string text;
    std::string_view view = text;
  };
  auto owner = std::make_shared<Owner>(Owner{*std::move(text)});
  return std::shared_ptr<const std::string_view>(owner, &owner->view);
}

absl::Status WriteFile(const std::string& path, std::string_view bytes) {
  std::error_code error;
  const fs::path folder = fs::path(path).parent_path();
  if (!folder.empty()) fs::create_directories(folder, error);
  if (error) return FileError(path, "write", error.value());
  const std::string part = absl::StrCat(path, ".part", getpid());
  std::FILE* file = std::fopen(part.c_str(), "wb");
  if (file == nullptr) return FileError(path, "write", errno);
  errno = 0;
  bool written =
      std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  written = std::fclose(file) == 0 && written;
  if (!written || std::rename(part.c_str(), path.c_str()) != 0) {
    const int cause = errno;
    std::remove(part.c_str());
    return FileError(path, "write", cause);
  }
  return absl::OkStatus();
}

}  // namespace mimo
