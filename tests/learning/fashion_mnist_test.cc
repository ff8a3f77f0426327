// The twenty-second job learns: real pictures in, the right words out.
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/mimo_main.h"
#include "gtest/gtest.h"
#include "models/llava/llava.h"

namespace mimo {
namespace {

TEST(Learning, FashionMnistThroughGeneratedText) {
  const std::string folder =
      absl::StrCat(::testing::TempDir(), "/fashion_mnist");
  const std::string config = "configs/fashion_mnist.yaml";
  ASSERT_EQ(MimoMain({"train", "--config", config, "checkpoint.save=" + folder,
                      absl::StrCat("logging.metrics=", folder, "/m.jsonl")},
                     BuiltinModules()),
            0);
  ::testing::internal::CaptureStdout();
  ASSERT_EQ(MimoMain({"evaluate", "--config", config, "--checkpoint", folder,
                      "--limit", "500", "--json"},
                     BuiltinModules()),
            0);
  const std::string out = ::testing::internal::GetCapturedStdout();
  const std::string key = "\"garment_exact_match\": ";
  const size_t at = out.find(key);
  ASSERT_NE(at, std::string::npos) << out;
  // 75 % as a rule; chance is 10 %, and 500 answers are good to about 2 %.
  EXPECT_GE(std::atof(out.c_str() + at + key.size()), 0.6) << out;
}

}  // namespace
}  // namespace mimo
