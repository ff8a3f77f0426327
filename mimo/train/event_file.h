// EventFile: scalars for TensorBoard.
//
// A file is a row of records
//   uint64 length, uint32 masked crc32c(length), bytes, uint32 masked
//   crc(bytes)
// (little-endian; mask(c) = rotate_right(c, 15) + 0xa282ead8), each the wire
// form of one Event message. Source: TensorFlow's record_writer.h, event.proto
// and summary.proto.
#ifndef MIMO_MIMO_TRAIN_EVENT_FILE_H_
#define MIMO_MIMO_TRAIN_EVENT_FILE_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "mimo/train/append_file.h"
#include "mimo/train/metrics_file.h"

namespace mimo {

class EventFile {
 public:
  // A new file in `folder`, made if need be. TensorBoard forgets what earlier
  // files of the folder say of `first_step` and later: a resumed run repeats
  // them.
  static absl::StatusOr<EventFile> Open(const std::string& folder,
                                        int64_t first_step, absl::Time now);

  // One event with a scalar `prefix` + name for each value, as float32.
  absl::Status Write(int64_t step, absl::string_view prefix,
                     const MetricValues& values, absl::Time now);

 private:
  explicit EventFile(AppendFile file) : file_(std::move(file)) {}
  absl::Status WriteRecord(absl::string_view event);
  AppendFile file_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_EVENT_FILE_H_
