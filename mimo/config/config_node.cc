#include "mimo/config/config_node.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/base/status_macros.h"
#include "mimo/config/nearest.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

// Aliases let a short file describe an endless tree.
constexpr int kMaxDepth = 64;
constexpr int kMaxNodes = 100000;

// Copies yaml-cpp's tree to ours. `to` has its origin and path.
absl::Status Convert(const YAML::Node& from, int depth, int& nodes,
                     ConfigNode& to) {
  if (depth > kMaxDepth || ++nodes > kMaxNodes) {
    return to.Error(absl::StrCat("too deep or too large, wanted at most ",
                                 kMaxDepth, " levels and ", kMaxNodes,
                                 " values"));
  }
  auto child = [&](std::string key, std::string name,
                   const YAML::Node& value) -> absl::Status {
    ConfigNode node;
    node.key = std::move(key);
    node.origin = to.origin;
    node.path = to.ChildPath(name);
    MIMO_RETURN_IF_ERROR(Convert(value, depth + 1, nodes, node));
    to.children.push_back(std::move(node));
    return absl::OkStatus();
  };
  switch (from.Type()) {
    case YAML::NodeType::Undefined:
    case YAML::NodeType::Null:
      break;
    case YAML::NodeType::Scalar:
      to.kind = ConfigNode::Kind::kScalar;
      to.text = from.Scalar();
      to.quoted = from.Tag() == "!";
      break;
    case YAML::NodeType::Sequence:
      to.kind = ConfigNode::Kind::kList;
      for (const YAML::Node& value : from) {
        MIMO_RETURN_IF_ERROR(
            child("", absl::StrCat(to.children.size()), value));
      }
      break;
    case YAML::NodeType::Map:
      to.kind = ConfigNode::Kind::kMap;
      for (const auto& item : from) {
        if (!item.first.IsScalar()) {
          return to.Error("a key that is not a name, wanted a name");
        }
        const std::string key = item.first.Scalar();
        if (to.Has(key)) {
          return to[key].Error("given twice, wanted it once");
        }
        MIMO_RETURN_IF_ERROR(child(key, key, item.second));
      }
      break;
  }
  return absl::OkStatus();
}

// Parses `text` into `node`, which has its origin and path.
absl::Status ParseInto(const std::string& text, ConfigNode& node) {
  try {
    int nodes = 0;
    return Convert(YAML::Load(text), 0, nodes, node);
  } catch (const YAML::Exception& e) {
    std::string where;
    if (!e.mark.is_null()) where = absl::StrCat("line ", e.mark.line + 1, ": ");
    return node.Error(absl::StrCat("not YAML: ", where, e.msg));
  }
}

bool IsNumber(const std::string& text) {
  double value;
  return !text.empty() && !std::isalpha(static_cast<unsigned char>(text[0])) &&
         absl::SimpleAtod(text, &value);
}

// Whether YAML reads plain `text` as that text, wherever it stands.
bool IsPlain(absl::string_view text) {
  if (text.empty() || text == "null" || text == "Null" || text == "NULL") {
    return false;
  }
  return !absl::StartsWith(text, "-") && !absl::StartsWith(text, ".") &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) || c == '_' || c == '-' || c == '/' ||
                  c == '.' || c == '+';
         });
}

std::string Scalar(absl::string_view text, bool quoted) {
  if (!quoted && (IsPlain(text) || IsNumber(std::string(text)))) {
    return std::string(text);
  }
  // YAML's double-quoted escapes: UTF-8 stands for itself.
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&out, "\\",
                      absl::string_view(reinterpret_cast<const char*>(&c), 1));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c < 0x20 || c == 0x7f) {
      absl::StrAppend(&out, "\\x", absl::Hex(c, absl::kZeroPad2));
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + "\"";
}

// Writes `node` after a key or a dash whose own indent is `indent` - 2.
void Write(const ConfigNode& node, int indent, bool in_list, std::string& out) {
  switch (node.kind) {
    case ConfigNode::Kind::kNull:
      out += "null\n";
      return;
    case ConfigNode::Kind::kScalar:
      absl::StrAppend(&out, Scalar(node.text, node.quoted), "\n");
      return;
    case ConfigNode::Kind::kList:
    case ConfigNode::Kind::kMap:
      break;
  }
  const bool list = node.kind == ConfigNode::Kind::kList;
  if (node.children.empty()) {
    out += list ? "[]\n" : "{}\n";
    return;
  }
  // The first line of a list's element follows its dash.
  bool same_line = in_list || out.empty();
  if (!same_line) out.back() = '\n';  // in place of the space after the colon
  for (const ConfigNode& child : node.children) {
    if (!same_line) out.append(indent, ' ');
    same_line = false;
    absl::StrAppend(&out, list ? "-" : Scalar(child.key, false) + ":", " ");
    Write(child, indent + 2, list, out);
  }
}

}  // namespace

const ConfigNode* ConfigNode::Find(absl::string_view name) const {
  if (kind != Kind::kMap) return nullptr;
  for (const ConfigNode& child : children) {
    if (child.key == name) return &child;
  }
  return nullptr;
}

ConfigNode ConfigNode::operator[](absl::string_view name) const {
  if (const ConfigNode* child = Find(name)) return *child;
  ConfigNode absent;
  absent.key = std::string(name);
  absent.origin = origin;
  absent.path = ChildPath(name);
  return absent;
}

std::string ConfigNode::ChildPath(absl::string_view name) const {
  return path.empty() ? std::string(name) : absl::StrCat(path, ".", name);
}

std::string ConfigNode::Describe() const {
  switch (kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kList:
      return "a list";
    case Kind::kMap:
      return "a section";
    case Kind::kScalar:
      break;
  }
  if (!quoted && IsNumber(text)) return text;
  const bool cut = text.size() > 60;
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(text.substr(0, 60)),
                      cut ? "..." : "", "\"");
}

absl::Status ConfigNode::Error(absl::string_view message) const {
  return absl::InvalidArgumentError(
      absl::StrCat(origin, path.empty() ? "" : ": ", path, ": ", message));
}

absl::StatusOr<ConfigNode> LoadYaml(const std::string& path) {
  MIMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseYaml(text, path);
}

absl::StatusOr<ConfigNode> ParseYaml(const std::string& text,
                                     const std::string& origin) {
  ConfigNode root;
  root.origin = origin;
  MIMO_RETURN_IF_ERROR(ParseInto(text, root));
  if (root.IsNull()) root.kind = ConfigNode::Kind::kMap;
  if (root.kind != ConfigNode::Kind::kMap) {
    return root.Error(absl::StrCat(root.Describe(), ", wanted keys"));
  }
  return root;
}

absl::Status ApplyOverride(ConfigNode& root, absl::string_view assignment) {
  const std::vector<std::string> sides =
      absl::StrSplit(assignment, absl::MaxSplits('=', 1));
  const std::vector<std::string> names = absl::StrSplit(sides[0], '.');
  if (sides.size() != 2 ||
      std::any_of(names.begin(), names.end(),
                  [](const std::string& name) { return name.empty(); })) {
    return absl::InvalidArgumentError(absl::StrCat(
        "override ", assignment, ": not an assignment, wanted a.b=value"));
  }
  const std::string origin = absl::StrCat(root.origin, " with ", assignment);
  ConfigNode value;
  value.origin = origin;
  value.path = sides[0];
  MIMO_RETURN_IF_ERROR(ParseInto(sides[1], value));

  ConfigNode* node = &root;
  for (const std::string& name : names) {
    if (node->IsNull()) node->kind = ConfigNode::Kind::kMap;
    if (node->kind != ConfigNode::Kind::kMap) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ": ", node->path, ": ", node->Describe(), " in ",
                       node->origin, ", wanted a section"));
    }
    ConfigNode* child = const_cast<ConfigNode*>(node->Find(name));
    if (child == nullptr) {
      node->children.push_back((*node)[name]);
      child = &node->children.back();
    }
    node = child;
  }
  value.key = node->key;
  *node = std::move(value);
  return absl::OkStatus();
}

absl::Status CheckKeys(const ConfigNode& node,
                       absl::Span<const absl::string_view> known) {
  if (node.IsNull()) return absl::OkStatus();
  if (node.kind != ConfigNode::Kind::kMap) {
    return node.Error(absl::StrCat(node.Describe(), ", wanted a section"));
  }
  for (const ConfigNode& child : node.children) {
    if (std::find(known.begin(), known.end(), child.key) != known.end()) {
      continue;
    }
    if (known.empty()) return child.Error("unknown key, wanted none");
    return child.Error(absl::StrCat("unknown key, did you mean ",
                                    node.ChildPath(Nearest(child.key, known)),
                                    "?"));
  }
  return absl::OkStatus();
}

std::string ToYaml(const ConfigNode& node) {
  std::string out;
  Write(node, 0, false, out);
  return out;
}

}  // namespace mimo
