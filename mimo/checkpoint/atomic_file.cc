#include "mimo/checkpoint/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace mimo {

absl::Status FileError(const std::string& path, absl::string_view verb,
                       int error) {
  const std::string message =
      absl::StrCat(path, ": cannot ", verb, ": ", std::strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case EEXIST:
    case ENOTEMPTY:
    case ENAMETOOLONG:
    case ELOOP:
    case EINVAL:
      return absl::InvalidArgumentError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path) {
  struct stat target;
  if (stat(path.c_str(), &target) == 0 && !S_ISREG(target.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", S_ISDIR(target.st_mode) ? "a folder" : "not a plain file",
        ", wanted a file to write"));
  }
  const size_t slash = path.rfind('/');
  const size_t name = slash == std::string::npos ? 0 : slash + 1;
  const std::string temporary =
      absl::StrCat(path.substr(0, name), ".tmp_", path.substr(name));
  const int fd =
      open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return FileError(path, "write", errno);
  return AtomicFile(path, temporary, fd);
}

AtomicFile::AtomicFile(std::string path, std::string temporary, int fd)
    : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)),
      end_(other.end_) {}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

absl::Status AtomicFile::Write(const void* data, int64_t bytes) {
  MIMO_RETURN_IF_ERROR(WriteAt(end_, data, bytes));
  end_ += bytes;
  return absl::OkStatus();
}

absl::Status AtomicFile::WriteAt(int64_t offset, const void* data,
                                 int64_t bytes) {
  const char* begin = static_cast<const char*>(data);
  while (bytes > 0) {
    // The system writes less than 2^31 bytes at a time.
    const ssize_t written =
        pwrite(fd_, begin, std::min<int64_t>(bytes, int64_t{1} << 30), offset);
    if (written < 0) {
      if (errno == EINTR) continue;
      return FileError(path_, "write", errno);
    }
    begin += written;
    offset += written;
    bytes -= written;
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Commit() {
  if (fsync(fd_) != 0) return FileError(path_, "write", errno);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    return FileError(path_, "write", errno);
  }
  close(std::exchange(fd_, -1));
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path,
                                 absl::string_view bytes) {
  MIMO_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  MIMO_RETURN_IF_ERROR(file.Write(bytes.data(), bytes.size()));
  return file.Commit();
}

absl::Status SyncFolder(const std::string& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FileError(folder, "open", errno);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  // Some file systems cannot sync folders, and need not.
  if (result != 0 && error != EINVAL) return FileError(folder, "sync", error);
  return absl::OkStatus();
}

}  // namespace mimo
