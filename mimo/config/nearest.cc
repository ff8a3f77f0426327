#include "mimo/config/nearest.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/log/check.h"

namespace mimo {
namespace {

// Edits from a to b: insert, delete, replace, swap two neighbours.
int64_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<std::vector<int64_t>> d(a.size() + 1,
                                      std::vector<int64_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      const bool differ = a[i - 1] != b[j - 1];
      d[i][j] = std::min(
          {d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + differ});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::string Nearest(absl::string_view name,
                    absl::Span<const absl::string_view> known) {
  CHECK(!known.empty());
  return std::string(
      *std::min_element(known.begin(), known.end(),
                        [&](absl::string_view a, absl::string_view b) {
                          return EditDistance(a, name) < EditDistance(b, name);
                        }));
}

std::string Nearest(absl::string_view name,
                    absl::Span<const std::string> known) {
  return Nearest(name,
                 std::vector<absl::string_view>(known.begin(), known.end()));
}

}  // namespace mimo
