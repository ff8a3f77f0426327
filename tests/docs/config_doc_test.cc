// docs/config.md has a table for each section of a config: its keys in the
// order of the struct, with their defaults, and no other.
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "mimo/config/fields.h"
#include "mimo/data/config.h"
#include "mimo/data/file.h"
#include "mimo/optim/optimizer_config.h"
#include "mimo/train/train_config.h"
#include "models/llava/config.h"
#include "models/parallelism/mimo_parallelism.h"

namespace mimo {
namespace {

using Rows = std::vector<std::pair<std::string, std::string>>;  // key, default

// "## heading" -> the rows below it whose first cell is a `key`, of
// | key | type | default | meaning |.
std::map<std::string, Rows> ReadTables() {
  const auto text = ReadFile("docs/config.md");
  EXPECT_TRUE(text.ok()) << text.status();
  std::map<std::string, Rows> tables;
  if (!text.ok()) return tables;
  std::string section;
  for (std::string_view line : absl::StrSplit(*text, '\n')) {
    if (absl::StartsWith(line, "## ")) section = line.substr(3);
    if (!absl::StartsWith(line, "| `")) continue;
    const std::vector<std::string> cells = absl::StrSplit(line, '|');
    if (cells.size() != 6) {
      ADD_FAILURE() << "not four cells: " << line;
      continue;
    }
    std::string_view key = absl::StripAsciiWhitespace(cells[1]);
    tables[section].emplace_back(key.substr(1, key.size() - 2),
                                 absl::StripAsciiWhitespace(cells[3]));
  }
  return tables;
}

// How the page writes a default.
std::string DefaultCell(const ConfigNode& node) {
  if (node.kind == ConfigNode::Kind::kNull) return "none";
  if (node.kind == ConfigNode::Kind::kScalar) {
    return absl::StrCat("`", node.text.empty() ? "\"\"" : node.text, "`");
  }
  if (node.children.size() > 1) return "below";  // a section of its own
  return absl::StrCat(
      "`{",
      absl::StrJoin(node.children, ", ",
                    [](std::string* out, const ConfigNode& child) {
                      absl::StrAppend(out, child.key, ": ", child.text);
                    }),
      "}`");
}

template <typename Config>
Rows RowsOf(Rows before = {}) {
  const ConfigNode node = ToNode(Config());
  for (const ConfigNode& field : node.children) {
    before.emplace_back(field.key, DefaultCell(field));
  }
  return before;
}

TEST(ConfigDoc, HasEveryKeyAndDefaultAndNoOther) {
  const std::map<std::string, Rows> wanted = {
      {"model (type: llava)",
       RowsOf<LlavaConfig>({{"type", "required"}, {"pretrained", "none"}})},
      {"model.language", RowsOf<GptConfig>()},
      {"model.vision", RowsOf<ClipVitConfig>()},
      {"model.projector", RowsOf<ProjectorConfig>()},
      // models/spec/model_yaml.cc
      {"model (type: mimo)",
       {{"type", "required"},
        {"language", "required"},
        {"modalities", "`{}`"},
        {"special_token_ids", "`{}`"},
        {"freeze_language_model", "`false`"},
        {"freeze_modality_encoders", "`{}`"},
        {"freeze_modality_projections", "`{}`"},
        {"quantization", "`{}`"}}},
      {"model.modalities.NAME",
       {{"encoders", "required"},
        {"decoders", "`{}`"},
        {"input_projections", "`[]`"},
        {"output_projections", "`[]`"}}},
      {"parallelism", RowsOf<MimoParallelismConfig>()},
      {"parallelism.modules.NAME", RowsOf<ModuleParallelismConfig>()},
      {"data", RowsOf<DataConfig>()},
      {"train", RowsOf<TrainConfig>()},
      {"optimizer", RowsOf<OptimizerConfig>()},
      {"optimizer.modules.NAME", RowsOf<ModuleOptimizerConfig>()},
      {"checkpoint", RowsOf<CheckpointConfig>()},
      {"logging", RowsOf<LoggingConfig>()},
  };
  const std::map<std::string, Rows> found = ReadTables();
  for (const auto& [section, rows] : wanted) {
    ASSERT_TRUE(found.contains(section)) << section;
    EXPECT_EQ(found.at(section), rows) << section;
  }
  for (const auto& [section, rows] : found) {
    EXPECT_TRUE(wanted.contains(section)) << section;
  }
}

}  // namespace
}  // namespace mimo
