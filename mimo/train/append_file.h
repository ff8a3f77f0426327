// AppendFile: a log that other programs may read while it grows.
#ifndef MIMO_MIMO_TRAIN_APPEND_FILE_H_
#define MIMO_MIMO_TRAIN_APPEND_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mimo {

class AppendFile {
 public:
  // Cuts the file at `size` bytes; makes it, and the folders above it, where
  // there is none. Errors: FileError of mimo/checkpoint/atomic_file.h.
  static absl::StatusOr<AppendFile> Open(const std::string& path, int64_t size);
  AppendFile(AppendFile&& other);
  AppendFile& operator=(AppendFile&& other);
  ~AppendFile();

  // Unbuffered: what was appended survives the process. ResourceExhausted when
  // the disk is full.
  absl::Status Append(absl::string_view bytes);

 private:
  AppendFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_APPEND_FILE_H_
