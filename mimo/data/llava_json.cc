#include "mimo/data/llava_json.h"

#include <filesystem>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/file.h"
#include "mimo/data/sha1.h"

namespace mimo {
namespace {

using nlohmann::json;

absl::Status Bad(const std::string& where, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", what));
}

absl::Status NotJson(const std::string& where, const json::exception& e) {
  // "[json.exception.parse_error.101] parse error at line 1, ...".
  std::string_view what = e.what();
  what.remove_prefix(std::min(what.size(), what.find("] ") + 2));
  return Bad(where, absl::StrCat("not JSON: ", what));
}

absl::StatusOr<json> ParseJson(std::string_view text,
                               const std::string& where) {
  try {
    return json::parse(text);
  } catch (const json::exception& e) {
    return NotJson(where, e);
  }
}

// item[key] as a text.
absl::StatusOr<std::string> Text(const json& item, const char* key,
                                 const std::string& where) {
  const auto it = item.find(key);
  if (it == item.end()) {
    return Bad(where, absl::StrCat("no \"", key, "\""));
  }
  if (!it->is_string()) {
    return Bad(where, absl::StrCat("\"", key, "\" is a ", it->type_name(),
                                   ", wanted a string"));
  }
  return it->get<std::string>();
}

absl::StatusOr<std::vector<Turn>> ParseTurns(const json& item,
                                             const std::string& where) {
  const auto list = item.find("conversations");
  if (list == item.end() || !list->is_array() || list->empty()) {
    return Bad(where, "no list \"conversations\" of turns");
  }
  std::vector<Turn> turns;
  bool asked = false;
  for (size_t i = 0; i < list->size(); ++i) {
    const json& turn = (*list)[i];
    const std::string at = absl::StrCat(where, ", turn ", i);
    if (!turn.is_object()) return Bad(at, "not an object");
    MIMO_ASSIGN_OR_RETURN(const std::string from, Text(turn, "from", at));
    MIMO_ASSIGN_OR_RETURN(std::string value, Text(turn, "value", at));
    const bool human = from == "human" || from == "user";
    if (!human && from != "gpt" && from != "assistant") {
      return Bad(at, absl::StrCat("\"from\" is \"", from,
                                  "\", wanted \"human\" or \"gpt\""));
    }
    if (human == asked) {
      return Bad(at, absl::StrCat("a second \"", from,
                                  "\" in a row, wanted human and gpt in turn"));
    }
    asked = human;
    if (human) {
      turns.emplace_back().question = std::move(value);
    } else {
      turns.back().answer = std::move(value);
      if (turn.contains("kind")) {
        MIMO_ASSIGN_OR_RETURN(turns.back().kind, Text(turn, "kind", at));
      }
    }
  }
  if (asked) return Bad(where, "the last question has no answer");
  return turns;
}

absl::StatusOr<Conversation> ParseItem(const json& item,
                                       const std::string& where,
                                       const std::filesystem::path& root) {
  if (!item.is_object()) {
    return Bad(where, absl::StrCat("a ", item.type_name(),
                                   ", wanted an object with conversations"));
  }
  Conversation out;
  MIMO_ASSIGN_OR_RETURN(out.turns, ParseTurns(item, where));
  if (const auto image = item.find("image"); image != item.end()) {
    for (const json& path : image->is_array() ? *image : json{*image}) {
      if (!path.is_string()) {
        return Bad(where, absl::StrCat("\"image\" is a ", path.type_name(),
                                       ", wanted a path or a list of paths"));
      }
      out.pictures.push_back({root / path.get<std::string>(), nullptr});
    }
  }
  for (const auto& [key, value] : item.items()) {
    if (key == "id") {
      out.id = value.is_string() ? value.get<std::string>() : value.dump();
    } else if (key != "image" && value.is_string()) {
      out.about[key] = value;
    }
  }
  int64_t placed = 0;
  for (const Turn& turn : out.turns) placed += CountImages(turn.question);
  if (placed != static_cast<int64_t>(out.pictures.size())) {
    return Bad(where,
               absl::StrCat(placed, " ", kImagePlaceholder, " for ",
                            out.pictures.size(), " images, wanted one each"));
  }
  return out;
}

// Reads a text and tells how far.
struct Reader {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char& operator*() const { return *at; }
  Reader& operator++() {
    *read = ++at;
    return *this;
  }
  bool operator==(const Reader& other) const { return at == other.at; }

  const char* at;
  const char** read;
};

// Where the items of a JSON array are, each of which is checked: one at a time
// is in memory.
absl::Status FindItems(std::string_view text, const std::string& name,
                       const std::filesystem::path& root,
                       std::vector<std::string_view>& items) {
  using Event = json::parse_event_t;
  absl::Status status;
  const char* read = text.data();
  const char* begin = read;
  const auto keep = [&](int depth, Event event, json& item) {
    if (depth != 1 || !status.ok()) return depth != 1;
    if (event == Event::object_start || event == Event::array_start) {
      begin = read - 1;
      return true;
    }
    status = ParseItem(item, absl::StrCat(name, ": item ", items.size()), root)
                 .status();
    items.emplace_back(begin, read - begin);
    return false;
  };
  try {
    const json emptied =
        json::parse(Reader{text.data(), &read},
                    Reader{text.data() + text.size(), &read}, keep);
  } catch (const json::exception& e) {
    return NotJson(name, e);
  }
  return status;
}

}  // namespace

absl::StatusOr<ConversationList> ReadLlavaJson(const std::string& path,
                                               const std::string& image_root) {
  const std::filesystem::path root =
      image_root.empty() ? std::filesystem::path(path).parent_path()
                         : std::filesystem::path(image_root);
  MIMO_ASSIGN_OR_RETURN(const auto text, MapFile(path));
  std::vector<std::string_view> items;
  const size_t start = text->find_first_not_of(" \t\r\n");
  if (start == text->npos) return Bad(path, "an empty file, wanted JSON");
  if ((*text)[start] == '[') {
    MIMO_RETURN_IF_ERROR(FindItems(*text, path, root, items));
  } else {
    int64_t number = 0;
    for (std::string_view line : absl::StrSplit(*text, '\n')) {
      const std::string where = absl::StrCat(path, ": line ", ++number);
      if (line.find_first_not_of(" \t\r") == line.npos) continue;
      MIMO_ASSIGN_OR_RETURN(const json item, ParseJson(line, where));
      MIMO_RETURN_IF_ERROR(ParseItem(item, where, root).status());
      items.push_back(line);
    }
  }
  const int64_t size = items.size();
  const auto shared =
      std::make_shared<const std::vector<std::string_view>>(std::move(items));
  return ConversationList(size, [text, shared, path, root](int64_t number) {
    const absl::StatusOr<Conversation> item =
        ParseItem(json::parse((*shared)[number], nullptr, false), path, root);
    CHECK_OK(item.status()) << "it was right when it was opened";
    return *item;
  });
}

std::string ToLlavaJson(const std::vector<Conversation>& conversations) {
  std::string out = "[";
  for (const Conversation& conversation : conversations) {
    nlohmann::ordered_json item = {{"id", conversation.id}};
    if (conversation.pictures.size() == 1) {
      item["image"] = conversation.pictures[0].path;
    } else {
      for (const Picture& picture : conversation.pictures) {
        item["image"].push_back(picture.path);
      }
    }
    for (const Turn& turn : conversation.turns) {
      auto& turns = item["conversations"];
      turns.push_back({{"from", "human"}, {"value", turn.question}});
      turns.push_back({{"from", "gpt"}, {"value", turn.answer}});
      if (!turn.kind.empty()) turns.back()["kind"] = turn.kind;
    }
    for (const auto& [key, value] : conversation.about) item[key] = value;
    absl::StrAppend(&out, out.size() > 1 ? ",\n" : "\n", item.dump());
  }
  return absl::StrCat(out, "\n]\n");
}

std::pair<ConversationList, ConversationList> SplitByHash(
    const ConversationList& conversations, double fraction) {
  if (fraction == 0) return {conversations, {}};
  constexpr uint32_t kShares = 10000;
  std::vector<int64_t> first, second;
  for (size_t i = 0; i < conversations.size(); ++i) {
    const Conversation c = conversations[i];
    const std::string& key =
        c.pictures.empty()
            ? absl::StrCat(c.id, c.turns[0].question)
            : std::filesystem::path(c.pictures[0].path).filename().string();
    const bool held_out =
        Sha1QuotientModulo(key, 1, kShares) < fraction * kShares;
    (held_out ? second : first).push_back(i);
  }
  return {conversations.Only(std::move(first)),
          conversations.Only(std::move(second))};
}

}  // namespace mimo
