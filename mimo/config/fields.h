// Config structs list their fields once:
//
//   struct OptimizerConfig {
//     double lr = 1e-3;
//     std::optional<double> clip_grad;
//     template <typename V>
//     void Fields(V& v) {
//       v("lr", lr);
//       v("clip_grad", clip_grad);
//     }
//   };
//
// and can then be read from YAML (FromYaml), written (ToYaml), compared and
// copied. Field types: bool, int64_t, double, std::string, an enum with
// EnumNames, std::optional<T>, std::vector<T>, std::map<std::string, T> and
// another config struct. A struct may add `absl::Status Validate() const`: it
// is called after reading; its message names the field ("lr: -1, wanted > 0").
#ifndef MIMO_MIMO_CONFIG_FIELDS_H_
#define MIMO_MIMO_CONFIG_FIELDS_H_

#include <concepts>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/log/log.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/base/status_macros.h"
#include "mimo/config/config_node.h"

namespace mimo {

// Names of an enum's values. Specialise with
//   static constexpr std::array<std::pair<E, absl::string_view>, N> kNames;
template <typename E>
struct EnumNames;

// Reads the map `node` into `out`: keys left out keep their present values; an
// absent node keeps them all. Lists and maps replace what was there; null
// clears an optional. Errors name file and dotted key: unknown key (the nearest
// known one is offered), wrong type, and what Validate() says. `other_keys` of
// this map are someone else's to read. On error `out` is partly read.
template <typename T>
absl::Status FromYaml(const ConfigNode& node, T& out,
                      absl::Span<const absl::string_view> other_keys = {});

// Reads the key `name` of the map `node` into `out`, if it is there and not
// null. Other keys are not looked at.
template <typename T>
absl::Status ReadKey(const ConfigNode& node, absl::string_view name, T& out);

// All fields as YAML text, which FromYaml reads back to an equal config.
template <typename T>
std::string ToYaml(const T& config);
template <typename T>
ConfigNode ToNode(const T& value);

template <typename T>
bool ConfigEqual(const T& a, const T& b) {
  return ToYaml(a) == ToYaml(b);
}

// ---------------------------------------------------------------------------
namespace config_internal {

absl::Status Read(const ConfigNode& node, bool& out);
absl::Status Read(const ConfigNode& node, double& out);  // finite
absl::Status Read(const ConfigNode& node, std::string& out);
absl::Status ReadInteger(const ConfigNode& node, int64_t min, int64_t max,
                         int64_t& out);
// The place in `names` of the name at `node`.
absl::Status ReadName(const ConfigNode& node,
                      absl::Span<const absl::string_view> names, size_t& out);
absl::Status WantKind(const ConfigNode& node, ConfigNode::Kind kind);
// A message of Validate(), "<field>: ...", with the field's place before it.
absl::Status PlaceError(const ConfigNode& node, const absl::Status& error);
ConfigNode ScalarNode(std::string text, bool quoted = false);
std::string NumberText(double value);  // the shortest that reads back the same

struct KeyVisitor {
  std::vector<absl::string_view> keys;
  template <typename T>
  void operator()(absl::string_view name, T&) {
    keys.push_back(name);
  }
};

template <typename T>
concept ConfigStruct = requires(T& t, KeyVisitor& v) {
  t.Fields(v);
};
template <typename T>
concept NamedEnum = std::is_enum_v<T>;
template <typename T>
concept Integer = std::integral<T> && !std::same_as<T, bool>;

// Each may hold any other.
template <Integer T>
absl::Status Read(const ConfigNode& node, T& out);
template <NamedEnum E>
absl::Status Read(const ConfigNode& node, E& out);
template <ConfigStruct T>
absl::Status Read(const ConfigNode& node, T& out);
template <typename T>
absl::Status Read(const ConfigNode& node, std::optional<T>& out);
template <typename T>
absl::Status Read(const ConfigNode& node, std::vector<T>& out);
template <typename T>
absl::Status Read(const ConfigNode& node, std::map<std::string, T>& out);

template <Integer T>
absl::Status Read(const ConfigNode& node, T& out) {
  int64_t value;
  MIMO_RETURN_IF_ERROR(ReadInteger(node, std::numeric_limits<T>::min(),
                                   std::numeric_limits<T>::max(), value));
  out = static_cast<T>(value);
  return absl::OkStatus();
}

template <NamedEnum E>
absl::Status Read(const ConfigNode& node, E& out) {
  std::vector<absl::string_view> names;
  for (const auto& [value, name] : EnumNames<E>::kNames) names.push_back(name);
  size_t index;
  MIMO_RETURN_IF_ERROR(ReadName(node, names, index));
  out = EnumNames<E>::kNames[index].first;
  return absl::OkStatus();
}

template <ConfigStruct T>
absl::Status Read(const ConfigNode& node, T& out) {
  return FromYaml(node, out);
}

template <typename T>
absl::Status Read(const ConfigNode& node, std::optional<T>& out) {
  if (node.IsNull()) {
    out.reset();
    return absl::OkStatus();
  }
  if (!out) out.emplace();
  return Read(node, *out);
}

template <typename T>
absl::Status Read(const ConfigNode& node, std::vector<T>& out) {
  MIMO_RETURN_IF_ERROR(WantKind(node, ConfigNode::Kind::kList));
  out.clear();
  for (const ConfigNode& child : node.children) {
    T value{};
    MIMO_RETURN_IF_ERROR(Read(child, value));
    out.push_back(std::move(value));
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status Read(const ConfigNode& node, std::map<std::string, T>& out) {
  MIMO_RETURN_IF_ERROR(WantKind(node, ConfigNode::Kind::kMap));
  out.clear();
  for (const ConfigNode& child : node.children) {
    MIMO_RETURN_IF_ERROR(Read(child, out[child.key]));
  }
  return absl::OkStatus();
}

struct ReadVisitor {
  const ConfigNode& node;
  absl::Status status;
  template <typename T>
  void operator()(absl::string_view name, T& field) {
    // An absent struct is visited too: its values are still validated.
    if (status.ok() && (ConfigStruct<T> || node.Has(name))) {
      status = Read(node[name], field);
    }
  }
};

struct WriteVisitor {
  ConfigNode& node;
  template <typename T>
  void operator()(absl::string_view name, const T& field) {
    ConfigNode child = ToNode(field);
    child.key = std::string(name);
    node.children.push_back(std::move(child));
  }
};

inline ConfigNode Write(bool value) {
  return ScalarNode(value ? "true" : "false");
}
inline ConfigNode Write(double value) { return ScalarNode(NumberText(value)); }
inline ConfigNode Write(const std::string& value) { return ScalarNode(value); }
template <Integer T>
ConfigNode Write(T value) {
  return ScalarNode(absl::StrCat(value));
}
template <NamedEnum E>
ConfigNode Write(E value) {
  for (const auto& [named, name] : EnumNames<E>::kNames) {
    if (named == value) return ScalarNode(std::string(name));
  }
  LOG(FATAL) << "enum value without a name: " << static_cast<int>(value);
}
template <ConfigStruct T>
ConfigNode Write(const T& config) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::kMap;
  WriteVisitor visitor{node};
  const_cast<T&>(config).Fields(visitor);  // which only reads
  return node;
}
template <typename T>
ConfigNode Write(const std::optional<T>& value) {
  return value ? ToNode(*value) : ConfigNode();
}
template <typename T>
ConfigNode Write(const std::vector<T>& values) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::kList;
  for (const T& value : values) node.children.push_back(ToNode(value));
  return node;
}
template <typename T>
ConfigNode Write(const std::map<std::string, T>& values) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::kMap;
  for (const auto& [key, value] : values) WriteVisitor{node}(key, value);
  return node;
}

}  // namespace config_internal

template <typename T>
absl::Status FromYaml(const ConfigNode& node, T& out,
                      absl::Span<const absl::string_view> other_keys) {
  config_internal::KeyVisitor known;
  out.Fields(known);
  known.keys.insert(known.keys.end(), other_keys.begin(), other_keys.end());
  MIMO_RETURN_IF_ERROR(CheckKeys(node, known.keys));
  config_internal::ReadVisitor reader{node, absl::OkStatus()};
  out.Fields(reader);
  MIMO_RETURN_IF_ERROR(reader.status);
  if constexpr (requires { out.Validate(); }) {
    const absl::Status valid = out.Validate();
    if (!valid.ok()) return config_internal::PlaceError(node, valid);
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status ReadKey(const ConfigNode& node, absl::string_view name, T& out) {
  const ConfigNode* child = node.Find(name);
  if (child == nullptr || child->IsNull()) return absl::OkStatus();
  return config_internal::Read(*child, out);
}

template <typename T>
ConfigNode ToNode(const T& value) {
  return config_internal::Write(value);
}

template <typename T>
std::string ToYaml(const T& config) {
  return ToYaml(ToNode(config));
}

}  // namespace mimo

#endif  // MIMO_MIMO_CONFIG_FIELDS_H_
