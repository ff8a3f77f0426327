#include "mimo/config/json.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

constexpr int kMaxDepth = 64;

// Copies `from` to `to`, which has its origin and path.
absl::Status Convert(const nlohmann::ordered_json& from, int depth,
                     ConfigNode& to) {
  if (depth > kMaxDepth) {
    return to.Error(
        absl::StrCat("too deep, wanted at most ", kMaxDepth, " levels"));
  }
  if (from.is_structured()) {
    to.kind =
        from.is_array() ? ConfigNode::Kind::kList : ConfigNode::Kind::kMap;
    for (const auto& [key, value] : from.items()) {
      ConfigNode child;
      if (from.is_object()) child.key = key;
      child.origin = to.origin;
      child.path = to.ChildPath(key);
      MIMO_RETURN_IF_ERROR(Convert(value, depth + 1, child));
      to.children.push_back(std::move(child));
    }
  } else if (!from.is_null()) {
    to.kind = ConfigNode::Kind::kScalar;
    to.quoted = from.is_string();
    to.text = to.quoted ? from.get<std::string>() : from.dump();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ConfigNode> LoadJson(const std::string& path) {
  MIMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseJson(text, path);
}

absl::StatusOr<ConfigNode> ParseJson(const std::string& text,
                                     const std::string& origin) {
  const auto json = nlohmann::ordered_json::parse(text, nullptr, false);
  ConfigNode root;
  root.origin = origin;
  if (!json.is_object()) return root.Error("not JSON, wanted an object");
  MIMO_RETURN_IF_ERROR(Convert(json, 0, root));
  return root;
}

}  // namespace mimo
