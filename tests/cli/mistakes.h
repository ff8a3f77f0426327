// What a mistake must come to: one line on stderr, the right exit code, nothing
// half-written.
#ifndef MIMO_TESTS_CLI_MISTAKES_H_
#define MIMO_TESTS_CLI_MISTAKES_H_

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/tiny_run.h"

namespace mimo {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

// Every path under `folder`, and the bytes of files.
inline std::map<std::string, std::string> Snapshot(const std::string& folder) {
  std::map<std::string, std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string path = entry.path();
    found[path] = entry.is_regular_file() ? Read(path) : "";
  }
  return found;
}

inline void ExpectOneLine(const Ran& ran, int code, const Words& parts) {
  EXPECT_EQ(ran.code, code) << ran.err;
  EXPECT_EQ(ran.out, "");
  EXPECT_TRUE(absl::StartsWith(ran.err, "mimo: ")) << ran.err;
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  EXPECT_TRUE(absl::EndsWith(ran.err, "\n")) << ran.err;
  for (const std::string& part : parts) {
    EXPECT_TRUE(absl::StrContains(ran.err, part))
        << "no \"" << part << "\" in " << ran.err;
  }
}

class Mistakes : public testing::Test {
 protected:
  Mistakes() : folder_(TestFolder("run")) {}

  // Runs `words`, which must leave `folder_` as it is.
  void Expect(const Words& words, const Words& parts, int code = 2) {
    SCOPED_TRACE(absl::StrCat("mimo ", absl::StrJoin(words, " ")));
    const auto before = Snapshot(folder_);
    ExpectOneLine(RunMimo(words), code, parts);
    for (const auto& [path, bytes] : Snapshot(folder_)) {
      ASSERT_TRUE(before.contains(path)) << path << " was left behind";
      EXPECT_TRUE(before.at(path) == bytes) << path << " was changed";
    }
  }
  // The tiny run with `overrides`, which must not have saved anything.
  void ExpectTrain(const Words& overrides, const Words& parts) {
    const Words words = TinyTrain(folder_, overrides);
    SCOPED_TRACE(absl::StrCat("train ", absl::StrJoin(overrides, " ")));
    ExpectOneLine(RunMimo(words), 2, parts);
    EXPECT_FALSE(fs::exists(folder_ + "/save/latest"));
    if (fs::exists(folder_ + "/metrics.jsonl")) {
      EXPECT_EQ(Read(folder_ + "/metrics.jsonl"), "");
    }
  }
  Words ForwardWords(const std::string& checkpoint, const std::string& inputs) {
    return {"forward",
            "--checkpoint",
            checkpoint,
            "--inputs",
            inputs,
            "--outputs",
            folder_ + "/out.safetensors"};
  }
  std::string In(const std::string& name) { return folder_ + "/" + name; }

  const std::string folder_;
};

// The file at `path` holds `bytes` while `then` runs.
inline void WithBytes(const std::string& path, const std::string& bytes,
                      const std::function<void()>& then) {
  const std::string kept = Read(path);
  Write(path, bytes);
  then();
  Write(path, kept);
}

// The first `share` of them.
inline std::string Cut(const std::string& bytes, double share) {
  return bytes.substr(0, static_cast<size_t>(bytes.size() * share));
}

}  // namespace mimo

#endif  // MIMO_TESTS_CLI_MISTAKES_H_
