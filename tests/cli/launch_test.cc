// `mimo launch`, by the binary itself: a launched run is the run.
#include <sys/wait.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/tiny_run.h"

namespace mimo {
namespace {

Ran RunBinary(const std::string& folder, std::vector<std::string> words) {
  for (std::string& word : words) word = absl::StrCat("'", word, "'");
  const std::string command =
      absl::StrCat("cli/mimo ", absl::StrJoin(words, " "), " > ", folder,
                   "/out 2> ", folder, "/err");
  const int status = std::system(command.c_str());
  return {WEXITSTATUS(status), Read(folder + "/out"), Read(folder + "/err")};
}

std::vector<std::string> Launched(const std::vector<std::string>& words) {
  std::vector<std::string> all = {"launch", "--nproc", "1", "--"};
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

TEST(Launch, OneRankTrainsAsWithoutIt) {
  const std::string here = TestFolder("here"), there = TestFolder("there");
  ASSERT_EQ(RunMimo(TinyTrain(here)).code, 0);
  const Ran ran = RunBinary(there, Launched(TinyTrain(there)));
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_TRUE(Untimed(ReadMetrics(there + "/metrics.jsonl")) ==
              Untimed(ReadMetrics(here + "/metrics.jsonl")));
}

TEST(Launch, AUsersMistakeStaysOne) {
  const std::string folder = TestFolder("run");
  const Ran ran =
      RunBinary(folder, Launched(TinyTrain(folder, {"train.dtype=float1"})));
  EXPECT_EQ(ran.code, 2);
  EXPECT_EQ(ran.out, "");
  EXPECT_TRUE(absl::StartsWith(ran.err, "[0] mimo: ")) << ran.err;
  EXPECT_TRUE(absl::StrContains(ran.err, "train.dtype")) << ran.err;
  EXPECT_TRUE(absl::EndsWith(ran.err,
                             "\nmimo: launch: rank 0 ended with exit code 2\n"))
      << ran.err;
}

}  // namespace
}  // namespace mimo
