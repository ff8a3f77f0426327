#include "mimo/train/metrics_file.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace mimo {
namespace {

std::string Path(const std::string& name) {
  return testing::TempDir() + "/metrics_file_test/" + name;
}

std::string Contents(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void Put(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

TEST(MetricsLine, IsAsInTheContract) {
  EXPECT_EQ(MetricsLine(3, "", {{"lm_loss", 5.85}, {"consumed_samples", 48}}),
            R"({"iteration": 3, "lm_loss": 5.85, "consumed_samples": 48})");
  EXPECT_EQ(
      MetricsLine(3, "validation", {{"name \"quoted\"", 0.1}}),
      R"({"iteration": 3, "split": "validation", "name \"quoted\"": 0.1})");
  EXPECT_EQ(MetricsLine(1, "", {{"a", std::nan("")}, {"b", INFINITY}}),
            R"({"iteration": 1, "a": null, "b": null})");
  EXPECT_EQ(MetricsLine(1, "", {{"n", 300000}, {"m", -2}, {"e", 1e300}}),
            R"({"iteration": 1, "n": 300000, "m": -2, "e": 1e+300})");
}

TEST(MetricsLine, NumbersReadBackExactly) {
  std::mt19937_64 rng(1);
  for (int i = 0; i < 2000; ++i) {
    const double value =
        std::ldexp(std::uniform_real_distribution<double>(-1, 1)(rng),
                   int(rng() % 80) - 50);
    const auto json = nlohmann::json::parse(MetricsLine(1, "", {{"v", value}}));
    EXPECT_EQ(json["v"].get<double>(), value);
  }
}

TEST(MetricsFile, AResumedRunDropsLaterLines) {
  const std::string path = Path("resumed/m.jsonl");
  {
    auto file = MetricsFile::Open(path, 0);
    ASSERT_TRUE(file.ok()) << file.status();
    for (int i = 1; i <= 4; ++i) {
      ASSERT_TRUE(file->Write(i, "", {{"lm_loss", i + 0.5}}).ok());
      if (i == 2) {
        ASSERT_TRUE(file->Write(i, "validation", {{"x", 1}}).ok());
      }
    }
  }
  const std::string all = Contents(path);
  const std::string two =
      "{\"iteration\": 1, \"lm_loss\": 1.5}\n"
      "{\"iteration\": 2, \"lm_loss\": 2.5}\n"
      "{\"iteration\": 2, \"split\": \"validation\", \"x\": 1}\n";
  {
    auto file = MetricsFile::Open(path, 2);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(Contents(path), two);
    ASSERT_TRUE(file->Write(3, "", {{"lm_loss", 3.5}}).ok());
    ASSERT_TRUE(file->Write(4, "", {{"lm_loss", 4.5}}).ok());
  }
  EXPECT_EQ(Contents(path), all);
  // Cut anywhere, as by a kill, the file loses at most the cut line.
  for (size_t size = 1; size <= two.size(); ++size) {
    Put(path, two.substr(0, size));
    ASSERT_TRUE(MetricsFile::Open(path, 2).ok());
    EXPECT_EQ(Contents(path), two.substr(0, two.rfind('\n', size - 1) + 1))
        << size;
  }
  // A fresh run starts from nothing, and so does one whose file is elsewhere.
  Put(path, all);
  ASSERT_TRUE(MetricsFile::Open(path, 0).ok());
  EXPECT_EQ(Contents(path), "");
  ASSERT_TRUE(MetricsFile::Open(Path("resumed/other.jsonl"), 7).ok());
}

TEST(MetricsFile, AnotherFileIsLeftAlone) {
  ASSERT_TRUE(MetricsFile::Open(Path("wrong/notes.txt"), 0).ok());
  const std::string path = Path("wrong/notes.txt");
  for (const char* text : {"my notes\nmore\n", "{\"a\": 1}\n", "3\n",
                           "{\"iteration\": \"one\"}\n"}) {
    Put(path, text);
    const auto file = MetricsFile::Open(path, 5);
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(file.status().message(),
              path +
                  ": line 1 is no metrics line, wanted the file of the run to "
                  "resume");
    EXPECT_EQ(Contents(path), text);
  }
}

TEST(MetricsFile, PathsThatCannotBeWritten) {
  ASSERT_TRUE(MetricsFile::Open(Path("bad/file"), 0).ok());
  // A folder where a file is wanted, a file where a folder is wanted.
  for (const std::string& path : {Path("bad"), Path("bad/file/m.jsonl")}) {
    for (int iteration : {0, 3}) {
      const absl::Status status = MetricsFile::Open(path, iteration).status();
      EXPECT_FALSE(status.ok());
      EXPECT_NE(status.message().find(Path("bad")), std::string::npos)
          << status;
    }
  }
}

TEST(MetricsFile, AFullDiskIsReported) {
  auto file = MetricsFile::Open("/dev/full", 0);
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::Status status = file->Write(1, "", {});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "/dev/full: cannot write: No space left on device");
}

}  // namespace
}  // namespace mimo
