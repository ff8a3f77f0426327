#include "mimo/config/json.h"

#include <string>

#include "absl/log/check.h"
#include "gtest/gtest.h"
#include "mimo/config/fields.h"

namespace mimo {
namespace {

struct Sizes {
  int64_t hidden = 1;
  double eps = 0;
  std::string name;
  std::optional<bool> flag = true;
  std::vector<int64_t> list;
  template <typename V>
  void Fields(V& v) {
    v("hidden", hidden);
    v("eps", eps);
    v("name", name);
    v("flag", flag);
    v("list", list);
  }
};

TEST(Json, ReadsLikeYaml) {
  const auto node = ParseJson(
      R"({"hidden": 64, "eps": 1e-05, "name": "\"\ud83d\ude00\n", "flag": null,
          "list": [1, 2]})",
      "c.json");
  ASSERT_TRUE(node.ok()) << node.status();
  Sizes sizes;
  const absl::Status status = FromYaml(*node, sizes);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(sizes.hidden, 64);
  EXPECT_EQ(sizes.eps, 1e-5);
  EXPECT_EQ(sizes.name, "\"\xf0\x9f\x98\x80\n");
  EXPECT_FALSE(sizes.flag.has_value());
  EXPECT_EQ(sizes.list, (std::vector<int64_t>{1, 2}));
}

TEST(Json, Errors) {
  auto error = [](const std::string& text) {
    const auto node = ParseJson(text, "c.json");
    if (!node.ok()) return std::string(node.status().message());
    Sizes sizes;
    return std::string(FromYaml((*node)["a"], sizes).message());
  };
  EXPECT_EQ(error(R"({"a": {"hidden": "64"}})"),
            "c.json: a.hidden: \"64\", wanted a whole number");
  EXPECT_EQ(error(R"({"a": {"hidden": 6.0}})"),
            "c.json: a.hidden: 6.0, wanted a whole number");
  EXPECT_EQ(error(R"({"a": {"name": 5e3}})"), "");
  EXPECT_EQ(error("[1]"), "c.json: not JSON, wanted an object");
  EXPECT_EQ(error("{\"a\": "), "c.json: not JSON, wanted an object");
  EXPECT_EQ(error(""), "c.json: not JSON, wanted an object");
  const std::string deep(100, '[');
  EXPECT_NE(
      error("{\"a\": " + deep + std::string(100, ']') + "}").find("too deep"),
      std::string::npos);
}

TEST(Json, Files) {
  EXPECT_EQ(LoadJson(testing::TempDir() + "/none.json").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(LoadJson(testing::TempDir()).ok());
}

}  // namespace
}  // namespace mimo
