#include "mimo/train/append_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "mimo/checkpoint/atomic_file.h"

namespace mimo {

absl::StatusOr<AppendFile> AppendFile::Open(const std::string& path,
                                            int64_t size) {
  const std::filesystem::path folder =
      std::filesystem::path(path).parent_path();
  if (std::error_code error;
      !folder.empty() &&
      (std::filesystem::create_directories(folder, error), error)) {
    return FileError(folder.string(), "make the folder", error.value());
  }
  const int fd =
      open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(path, "open", errno);
  AppendFile file(path, fd);
  // Not where there is nothing to cut: a pipe would refuse.
  struct stat found;
  if (fstat(fd, &found) != 0 ||
      (found.st_size > size && ftruncate(fd, size) != 0)) {
    return FileError(path, "cut", errno);
  }
  return file;
}

AppendFile::AppendFile(AppendFile&& other)
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

AppendFile& AppendFile::operator=(AppendFile&& other) {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  return *this;
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) close(fd_);
}

absl::Status AppendFile::Append(absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(path_, "write", errno);
    bytes.remove_prefix(written);
  }
  return absl::OkStatus();
}

}  // namespace mimo
