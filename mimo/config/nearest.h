// The known name that a mistyped one was most likely meant to be.
#ifndef MIMO_MIMO_CONFIG_NEAREST_H_
#define MIMO_MIMO_CONFIG_NEAREST_H_

#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mimo {

// The first of `known` (not empty) with the fewest edits from `name`: letters
// inserted, deleted, replaced, or two neighbours swapped.
std::string Nearest(absl::string_view name,
                    absl::Span<const absl::string_view> known);
std::string Nearest(absl::string_view name,
                    absl::Span<const std::string> known);

}  // namespace mimo

#endif  // MIMO_MIMO_CONFIG_NEAREST_H_
