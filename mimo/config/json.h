// JSON files as ConfigNodes, so that their errors too name file and dotted key.
#ifndef MIMO_MIMO_CONFIG_JSON_H_
#define MIMO_MIMO_CONFIG_JSON_H_

#include <string>

#include "absl/status/statusor.h"
#include "mimo/config/config_node.h"

namespace mimo {

// The file's root, an object. Errors: no such file, a directory, not JSON.
absl::StatusOr<ConfigNode> LoadJson(const std::string& path);

// The same for text; errors name `origin`.
absl::StatusOr<ConfigNode> ParseJson(const std::string& text,
                                     const std::string& origin);

}  // namespace mimo

#endif  // MIMO_MIMO_CONFIG_JSON_H_
