// MetricsFile: a run's numbers, one JSON object a line (docs/metrics.md).
#ifndef MIMO_MIMO_TRAIN_METRICS_FILE_H_
#define MIMO_MIMO_TRAIN_METRICS_FILE_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "mimo/train/append_file.h"

namespace mimo {

// Names and values, in the order they are written.
using MetricValues = std::vector<std::pair<std::string, double>>;

// {"iteration": 1, "split": "validation", "lm_loss": 5.85}, no newline. An
// empty `split` is left out. A number has the fewest digits that read back as
// the same double; one that is not finite is null.
std::string MetricsLine(int64_t iteration, absl::string_view split,
                        const MetricValues& values);

class MetricsFile {
 public:
  // For a run that goes on after `iteration` (0: from the start): lines of
  // later iterations, and a last line cut short, are dropped. InvalidArgument
  // if another line is no metrics line.
  static absl::StatusOr<MetricsFile> Open(const std::string& path,
                                          int64_t iteration);

  absl::Status Write(int64_t iteration, absl::string_view split,
                     const MetricValues& values);

 private:
  explicit MetricsFile(AppendFile file) : file_(std::move(file)) {}
  AppendFile file_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_METRICS_FILE_H_
