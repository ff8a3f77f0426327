// Each table of docs/parallelism.md is what `mimo plan` prints for the config
// above it: its lines are lines of the output, in their order.
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "tests/testing/run_mimo.h"

namespace mimo {
namespace {

using Lines = std::vector<std::string>;

// From a line that begins with `begin` to the next of ``` alone.
Lines Block(const Lines& page, size_t& at, std::string_view begin) {
  Lines block;
  while (at < page.size() && page[at] != begin) ++at;
  for (++at; at < page.size() && page[at] != "```"; ++at) {
    block.push_back(page[at]);
  }
  return block;
}

TEST(ParallelismDoc, TablesAreWhatPlanPrints) {
  const Lines page = absl::StrSplit(Read("docs/parallelism.md"), '\n');
  int tables = 0;
  for (size_t at = 0;; ++tables) {
    std::string config = R"(
model: {type: llava}
train: {micro_batch_size: 2, global_batch_size: 16}
parallelism:
)";
    const Lines yaml = Block(page, at, "```yaml");
    if (yaml.empty()) break;
    for (const std::string& line : yaml) {
      absl::StrAppend(&config, "  ", line, "\n");
    }
    // "`mimo plan --world 4`..."
    const std::vector<std::string_view> words =
        absl::StrSplit(page.at(at + 1), absl::ByAnyChar(" `"));
    const auto world = std::find(words.begin(), words.end(), "--world");
    ASSERT_NE(world, words.end()) << page[at + 1];
    const Ran ran = RunMimo({"plan", "--config",
                             Write(TestFolder("plan") + "/f.yaml", config),
                             "--world", std::string(world[1])});
    ASSERT_EQ(ran.code, 0) << ran.err;
    const Lines printed = absl::StrSplit(ran.out, '\n');
    auto next = printed.begin();
    const Lines table = Block(page, at, "```text");
    EXPECT_GT(table.size(), 5);
    for (const std::string& line : table) {
      const auto found = std::find(next, printed.end(), line);
      ASSERT_NE(found, printed.end()) << line << "\nof " << ran.out;
      next = found + 1;
    }
  }
  EXPECT_EQ(tables, 3) << "one for each deployment mode";
}

}  // namespace
}  // namespace mimo
