#include "mimo/train/metrics_file.h"

#include <charconv>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

std::string Number(double value) {
  if (!std::isfinite(value)) return "null";
  // Counts as integers: the shortest form of 100000.0 is 1e+05.
  if (std::abs(value) < 1e15 && value == std::trunc(value)) {
    return absl::StrCat(static_cast<int64_t>(value));
  }
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof(text), value).ptr);
}

// Bytes of the lines of iterations up to `iteration`; 0 if there is no file.
absl::StatusOr<int64_t> KeptBytes(const std::string& path, int64_t iteration) {
  std::ifstream file(path, std::ios::binary);
  int64_t kept = 0;
  int64_t number = 0;
  for (std::string line; std::getline(file, line) && !file.eof();) {
    ++number;
    const nlohmann::json json =
        nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("iteration") ||
        !json["iteration"].is_number_integer()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": line ", number, " is no metrics line, wanted the file of ",
          "the run to resume"));
    }
    if (json["iteration"].get<int64_t>() > iteration) break;
    kept += static_cast<int64_t>(line.size()) + 1;
  }
  return kept;
}

}  // namespace

std::string MetricsLine(int64_t iteration, absl::string_view split,
                        const MetricValues& values) {
  std::string line = absl::StrCat("{\"iteration\": ", iteration);
  if (!split.empty()) absl::StrAppend(&line, ", \"split\": \"", split, "\"");
  for (const auto& [name, value] : values) {
    absl::StrAppend(&line, ", ", nlohmann::json(name).dump(), ": ",
                    Number(value));
  }
  return line + "}";
}

absl::StatusOr<MetricsFile> MetricsFile::Open(const std::string& path,
                                              int64_t iteration) {
  int64_t kept = 0;
  if (iteration > 0) {
    MIMO_ASSIGN_OR_RETURN(kept, KeptBytes(path, iteration));
  }
  MIMO_ASSIGN_OR_RETURN(AppendFile file, AppendFile::Open(path, kept));
  return MetricsFile(std::move(file));
}

absl::Status MetricsFile::Write(int64_t iteration, absl::string_view split,
                                const MetricValues& values) {
  return file_.Append(MetricsLine(iteration, split, values) + "\n");
}

}  // namespace mimo
