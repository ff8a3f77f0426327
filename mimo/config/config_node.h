// ConfigNode: a piece of a YAML configuration that knows where it came from, so
// that every error names the file, the override if any, and the dotted key:
//
//   configs/x.yaml: optimizer.lr: "fast", wanted a number
//   configs/x.yaml with optimizer.lr=-1: optimizer.lr: -1, wanted > 0
//
// yaml-cpp and its exceptions stay behind ParseYaml.
#ifndef MIMO_MIMO_CONFIG_CONFIG_NODE_H_
#define MIMO_MIMO_CONFIG_CONFIG_NODE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mimo {

struct ConfigNode {
  enum class Kind { kNull, kScalar, kList, kMap };

  Kind kind = Kind::kNull;
  std::string key;                   // in the parent map
  std::string text;                  // of a scalar
  bool quoted = false;               // a scalar that is text whatever it says
  std::vector<ConfigNode> children;  // of a list or map, in their order
  std::string origin;                // the file, with the override if any
  std::string path;                  // dotted key from the root; "" is the root

  bool IsNull() const { return kind == Kind::kNull; }
  // The child of a map; null when there is none.
  const ConfigNode* Find(absl::string_view name) const;
  bool Has(absl::string_view name) const { return Find(name) != nullptr; }
  // A copy of the child, or a null node with the path that it would have.
  ConfigNode operator[](absl::string_view name) const;

  std::string ChildPath(absl::string_view name) const;
  // What stands here, for messages: `"fast"`, `1.5`, `nothing`, `a list`.
  std::string Describe() const;
  // InvalidArgument "<origin>: <path>: <message>".
  absl::Status Error(absl::string_view message) const;
};

// The file's root, a map (an empty file is an empty map). Errors: no such file,
// a directory, bad YAML (with its line), a key given twice.
absl::StatusOr<ConfigNode> LoadYaml(const std::string& path);

// The same for text; errors name `origin`.
absl::StatusOr<ConfigNode> ParseYaml(const std::string& text,
                                     const std::string& origin);

// Sets "a.b=value" (value in YAML) in the map `root`; missing maps on the way
// are made. What is set names the override beside its origin.
absl::Status ApplyOverride(ConfigNode& root, absl::string_view assignment);

// Error when the map `node` has a key that is not in `known`; the nearest known
// one is offered. A null node passes; another kind is an error.
absl::Status CheckKeys(const ConfigNode& node,
                       absl::Span<const absl::string_view> known);

// YAML in block style, which ParseYaml reads back the same.
std::string ToYaml(const ConfigNode& node);

}  // namespace mimo

#endif  // MIMO_MIMO_CONFIG_CONFIG_NODE_H_
