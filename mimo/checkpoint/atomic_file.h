// AtomicFile: a file that appears whole or not at all.
//
// Bytes go to a temporary file beside the target; Commit syncs it to disk and
// renames it. Without Commit the temporary file is removed.
#ifndef MIMO_MIMO_CHECKPOINT_ATOMIC_FILE_H_
#define MIMO_MIMO_CHECKPOINT_ATOMIC_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mimo {

// "<path>: cannot <verb>: <errno's text>". ResourceExhausted: disk or quota
// full, file too large; PermissionDenied; InvalidArgument: a path that cannot
// be; Internal: the rest.
absl::Status FileError(const std::string& path, absl::string_view verb,
                       int error);

class AtomicFile {
 public:
  static absl::StatusOr<AtomicFile> Create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  absl::Status Write(const void* data, int64_t bytes);
  // In place of what was written there.
  absl::Status WriteAt(int64_t offset, const void* data, int64_t bytes);
  absl::Status Commit();

 private:
  AtomicFile(std::string path, std::string temporary, int fd);
  std::string path_, temporary_;
  int fd_ = -1;
  int64_t end_ = 0;  // bytes written
};

// Create, Write, Commit.
absl::Status WriteFileAtomically(const std::string& path,
                                 absl::string_view bytes);

// Makes the renames in `folder` survive a loss of power.
absl::Status SyncFolder(const std::string& folder);

}  // namespace mimo

#endif  // MIMO_MIMO_CHECKPOINT_ATOMIC_FILE_H_
