// Files in and out with one-line errors.
#ifndef MIMO_MIMO_DATA_FILE_H_
#define MIMO_MIMO_DATA_FILE_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace mimo {

bool Exists(const std::string& path);

// NotFound: nothing there; InvalidArgument: a directory, or not readable.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// The same without memory of its own: the file, which must stay as it is, is
// mapped.
absl::StatusOr<std::shared_ptr<const std::string_view>> MapFile(
    const std::string& path);

// Written beside `path` under another name, then renamed: a reader sees the old
// file or the new one, never a part (though not synced to disk: for what can be
// made again). Folders on the way are created. Errors: as FileError's.
absl::Status WriteFile(const std::string& path, std::string_view bytes);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_FILE_H_
