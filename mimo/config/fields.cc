#include "mimo/config/fields.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"

namespace mimo::config_internal {
namespace {

absl::Status Wanted(const ConfigNode& node, absl::string_view wanted) {
  return node.Error(absl::StrCat(node.Describe(), ", wanted ", wanted));
}

bool IsPlainScalar(const ConfigNode& node) {
  return node.kind == ConfigNode::Kind::kScalar && !node.quoted;
}

}  // namespace

absl::Status Read(const ConfigNode& node, bool& out) {
  if (IsPlainScalar(node)) {
    for (absl::string_view yes : {"true", "True", "TRUE"}) {
      if (node.text == yes) return out = true, absl::OkStatus();
    }
    for (absl::string_view no : {"false", "False", "FALSE"}) {
      if (node.text == no) return out = false, absl::OkStatus();
    }
  }
  return Wanted(node, "true or false");
}

absl::Status Read(const ConfigNode& node, double& out) {
  if (!IsPlainScalar(node) || !absl::SimpleAtod(node.text, &out) ||
      !std::isfinite(out)) {
    return Wanted(node, "a number");
  }
  return absl::OkStatus();
}

absl::Status Read(const ConfigNode& node, std::string& out) {
  if (node.kind != ConfigNode::Kind::kScalar) return Wanted(node, "text");
  out = node.text;
  return absl::OkStatus();
}

absl::Status ReadInteger(const ConfigNode& node, int64_t min, int64_t max,
                         int64_t& out) {
  if (!IsPlainScalar(node)) return Wanted(node, "a whole number");
  const bool digits = std::all_of(
      node.text.begin() + (node.text[0] == '-' || node.text[0] == '+'),
      node.text.end(), [](char c) { return '0' <= c && c <= '9'; });
  const bool fits = absl::SimpleAtoi(node.text, &out);
  if (!digits) return Wanted(node, "a whole number");
  if (!fits || out < min || out > max) {
    return Wanted(node, absl::StrCat("a whole number from ", min, " to ", max));
  }
  return absl::OkStatus();
}

absl::Status ReadName(const ConfigNode& node,
                      absl::Span<const absl::string_view> names, size_t& out) {
  if (node.kind == ConfigNode::Kind::kScalar) {
    out = std::find(names.begin(), names.end(), node.text) - names.begin();
    if (out < names.size()) return absl::OkStatus();
  }
  return Wanted(node, absl::StrJoin(names, " | "));
}

absl::Status WantKind(const ConfigNode& node, ConfigNode::Kind kind) {
  if (node.kind == kind) return absl::OkStatus();
  return Wanted(node, kind == ConfigNode::Kind::kList ? "a list" : "a section");
}

absl::Status PlaceError(const ConfigNode& node, const absl::Status& error) {
  const absl::string_view message = error.message();
  // The field may have come from an override: its own node knows.
  ConfigNode at = node;
  const absl::string_view field = message.substr(0, message.find(':'));
  absl::string_view rest = field;
  while (!rest.empty()) {
    const size_t dot = std::min(rest.find('.'), rest.size());
    at = at[rest.substr(0, dot)];
    rest.remove_prefix(std::min(dot + 1, rest.size()));
  }
  return absl::Status(error.code(),
                      absl::StrCat(at.origin, ": ", node.ChildPath(message)));
}

ConfigNode ScalarNode(std::string text, bool quoted) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::kScalar;
  node.text = std::move(text);
  node.quoted = quoted;
  return node;
}

std::string NumberText(double value) {
  char buffer[32];
  std::string text(buffer,
                   std::to_chars(buffer, buffer + sizeof(buffer), value).ptr);
  // YAML 1.1 readers take 1e-05 and 100 for text and an integer.
  if (text.find_first_of(".n") == std::string::npos) {
    text.insert(std::min(text.find('e'), text.size()), ".0");
  }
  return text;
}

}  // namespace mimo::config_internal
