#include "mimo/config/fields.h"

#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "absl/log/check.h"
#include "gtest/gtest.h"

namespace mimo {

enum class Style { kCosine, kLinear };
template <>
struct EnumNames<Style> {
  static constexpr std::array<std::pair<Style, absl::string_view>, 2> kNames = {
      {{Style::kCosine, "cosine"}, {Style::kLinear, "linear"}}};
};

namespace {

struct Inner {
  double lr = 1e-3;
  int64_t iters = 10;
  int32_t small = 1;
  std::optional<double> clip = 1.0;
  Style style = Style::kCosine;
  template <typename V>
  void Fields(V& v) {
    v("lr", lr);
    v("iters", iters);
    v("small", small);
    v("clip", clip);
    v("style", style);
  }
  absl::Status Validate() const {
    if (lr <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("lr: ", lr, ", wanted > 0"));
    }
    return absl::OkStatus();
  }
};

struct Outer {
  std::string name = "none";
  bool flag = false;
  Inner inner;
  std::vector<int64_t> sizes = {1, 2};
  std::optional<std::vector<std::optional<double>>> deep;
  std::map<std::string, Inner> by_name;
  std::map<std::string, bool> flags = {{"images", true}};
  template <typename V>
  void Fields(V& v) {
    v("name", name);
    v("flag", flag);
    v("inner", inner);
    v("sizes", sizes);
    v("deep", deep);
    v("by_name", by_name);
    v("flags", flags);
  }
};

ConfigNode Parse(const std::string& text) {
  auto node = ParseYaml(text, "x.yaml");
  CHECK_OK(node.status());
  return *node;
}

std::string ReadError(const std::string& text) {
  Outer out;
  return std::string(FromYaml(Parse(text), out).message());
}

TEST(FromYaml, KeepsDefaultsAndReadsEveryType) {
  Outer out;
  out.inner.iters = 7;  // a default that is not the struct's own
  ASSERT_TRUE(FromYaml(Parse(R"(
name: 2024
flag: true
inner: {lr: 5.0e-2, clip: null, style: linear, small: -3}
sizes: []
deep: [1, null, .5]
by_name: {a: {iters: 4}, b: null}
flags: {audio: False}
)"),
                       out)
                  .ok());
  EXPECT_EQ(out.name, "2024");
  EXPECT_TRUE(out.flag);
  EXPECT_EQ(out.inner.lr, 0.05);
  EXPECT_EQ(out.inner.iters, 7);
  EXPECT_EQ(out.inner.small, -3);
  EXPECT_FALSE(out.inner.clip.has_value());
  EXPECT_EQ(out.inner.style, Style::kLinear);
  EXPECT_TRUE(out.sizes.empty());
  ASSERT_TRUE(out.deep.has_value());
  EXPECT_EQ(*out.deep,
            (std::vector<std::optional<double>>{1.0, std::nullopt, 0.5}));
  EXPECT_EQ(out.by_name.at("a").iters, 4);
  EXPECT_EQ(out.by_name.at("b").iters, 10);
  EXPECT_EQ(out.flags, (std::map<std::string, bool>{{"audio", false}}));
}

TEST(FromYaml, EmptyFileAndAbsentSectionGiveDefaults) {
  Outer out;
  EXPECT_TRUE(FromYaml(Parse(""), out).ok());
  EXPECT_TRUE(FromYaml(Parse("inner:\n"), out).ok());
  Inner inner;
  EXPECT_TRUE(FromYaml(Parse("other: 5")["inner"], inner).ok());
  EXPECT_TRUE(ConfigEqual(out, Outer{}));
}

TEST(FromYaml, UnknownKeysNameTheNearest) {
  EXPECT_EQ(ReadError("inner: {itres: 5}"),
            "x.yaml: inner.itres: unknown key, did you mean inner.iters?");
  EXPECT_EQ(ReadError("iner: {}"),
            "x.yaml: iner: unknown key, did you mean inner?");
  EXPECT_EQ(ReadError("by_name: {a: {stile: linear}}"),
            "x.yaml: by_name.a.stile: unknown key, did you mean "
            "by_name.a.style?");
  Inner inner;
  const ConfigNode node = Parse("{type: gpt, lr: 2}");
  EXPECT_FALSE(FromYaml(node, inner).ok());
  EXPECT_TRUE(FromYaml(node, inner, {"type"}).ok());
  EXPECT_EQ(FromYaml(Parse("{typ: gpt}"), inner, {"type"}).message(),
            "x.yaml: typ: unknown key, did you mean type?");
}

TEST(FromYaml, WrongTypes) {
  EXPECT_EQ(ReadError("inner: {lr: fast}"),
            "x.yaml: inner.lr: \"fast\", wanted a number");
  EXPECT_EQ(ReadError("inner: {lr: \"1\"}"),
            "x.yaml: inner.lr: \"1\", wanted a number");
  EXPECT_EQ(ReadError("inner: {lr: .inf}"),
            "x.yaml: inner.lr: \".inf\", wanted a number");
  EXPECT_EQ(ReadError("inner: {lr: 1e999}"),
            "x.yaml: inner.lr: 1e999, wanted a number");
  EXPECT_EQ(ReadError("inner: {lr: [1]}"),
            "x.yaml: inner.lr: a list, wanted a number");
  EXPECT_EQ(ReadError("inner: {lr: }"),
            "x.yaml: inner.lr: nothing, wanted a number");
  for (const char* number : {"1.5", "1e3", "1.0"}) {
    EXPECT_EQ(ReadError(absl::StrCat("inner: {iters: ", number, "}")),
              absl::StrCat("x.yaml: inner.iters: ", number,
                           ", wanted a whole number"));
  }
  EXPECT_EQ(ReadError("inner: {iters: ten}"),
            "x.yaml: inner.iters: \"ten\", wanted a whole number");
  EXPECT_EQ(ReadError("inner: {small: 2147483648}"),
            "x.yaml: inner.small: 2147483648, wanted a whole number from "
            "-2147483648 to 2147483647");
  EXPECT_EQ(ReadError("inner: {iters: 9223372036854775808}"),
            "x.yaml: inner.iters: 9223372036854775808, wanted a whole number "
            "from -9223372036854775808 to 9223372036854775807");
  EXPECT_EQ(ReadError("inner: {style: round}"),
            "x.yaml: inner.style: \"round\", wanted cosine | linear");
  EXPECT_EQ(ReadError("inner: 5"), "x.yaml: inner: 5, wanted a section");
  EXPECT_EQ(ReadError("flag: yes"),
            "x.yaml: flag: \"yes\", wanted true or false");
  EXPECT_EQ(ReadError("name: {a: 1}"), "x.yaml: name: a section, wanted text");
  EXPECT_EQ(ReadError("name: null"), "x.yaml: name: nothing, wanted text");
  EXPECT_EQ(ReadError("sizes: 3"), "x.yaml: sizes: 3, wanted a list");
  EXPECT_EQ(ReadError("sizes: [3, x]"),
            "x.yaml: sizes.1: \"x\", wanted a whole number");
  EXPECT_EQ(ReadError("flags: true"),
            "x.yaml: flags: \"true\", wanted a section");
  EXPECT_EQ(ReadError("flags: {images: 1}"),
            "x.yaml: flags.images: 1, wanted true or false");
}

TEST(FromYaml, ValidateNamesFileKeyAndOverride) {
  EXPECT_EQ(ReadError("inner: {lr: -1}"), "x.yaml: inner.lr: -1, wanted > 0");
  ConfigNode node = Parse("inner: {iters: 3}");
  ASSERT_TRUE(ApplyOverride(node, "inner.lr=-2").ok());
  Outer out;
  EXPECT_EQ(FromYaml(node, out).message(),
            "x.yaml with inner.lr=-2: inner.lr: -2, wanted > 0");
  // A section that an override makes is otherwise the file's.
  node = Parse("name: a");
  ASSERT_TRUE(ApplyOverride(node, "inner.iters=3").ok());
  out.inner.lr = -3;
  EXPECT_EQ(FromYaml(node, out).message(), "x.yaml: inner.lr: -3, wanted > 0");
  // A default that is not valid is found even where no key is given.
  out.inner.lr = -3;
  EXPECT_EQ(FromYaml(Parse("name: a"), out).message(),
            "x.yaml: inner.lr: -3, wanted > 0");
}

TEST(ParseYaml, Errors) {
  auto error = [](const std::string& text) {
    return std::string(ParseYaml(text, "x.yaml").status().message());
  };
  EXPECT_EQ(error("[1, 2]"), "x.yaml: a list, wanted keys");
  EXPECT_EQ(error("hello"), "x.yaml: \"hello\", wanted keys");
  EXPECT_EQ(error("a: {b: 1, b: 2}"),
            "x.yaml: a.b: given twice, wanted it once");
  EXPECT_EQ(error("? [1]\n: 2"),
            "x.yaml: a key that is not a name, wanted a name");
  EXPECT_EQ(error("a: 1\nb: [1, 2\n").substr(0, 22), "x.yaml: not YAML: line");
  EXPECT_EQ(error("a: *nowhere").substr(0, 25), "x.yaml: not YAML: line 1:");
  EXPECT_NE(error("a: &x [*x]").find("too deep"), std::string::npos);
  std::string bomb = "a0: &a0 [1, 1]\n";
  for (int i = 1; i < 40; ++i) {
    absl::StrAppend(&bomb, "a", i, ": &a", i, " [*a", i - 1, ", *a", i - 1,
                    "]\n");
  }
  EXPECT_NE(error(bomb).find("too large"), std::string::npos);
  EXPECT_FALSE(ParseYaml(std::string(5000, '['), "x.yaml").ok());
  EXPECT_FALSE(ParseYaml(std::string("\0\x01{", 3), "x.yaml").ok());
}

TEST(LoadYaml, Files) {
  const std::string folder = testing::TempDir();
  const std::string path = folder + "/config.yaml";
  std::ofstream(path) << "inner: {lr: fast}\n";
  auto node = LoadYaml(path);
  ASSERT_TRUE(node.ok());
  Outer out;
  EXPECT_EQ(FromYaml(*node, out).message(),
            path + ": inner.lr: \"fast\", wanted a number");
  EXPECT_EQ(LoadYaml(folder + "/absent.yaml").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(LoadYaml(folder).ok());
}

TEST(Override, SetsAndMakesSections) {
  ConfigNode node = Parse("inner: {lr: 1}\nby_name:\n");
  for (const char* text :
       {"inner.lr=0.5", "inner.style=linear", "by_name.x.iters=3",
        "name=a=b: c", "sizes=[4, 5]", "deep=", "flags.audio=false"}) {
    ASSERT_TRUE(ApplyOverride(node, text).ok()) << text;
  }
  Outer out;
  // "a=b: c" is a map in YAML.
  EXPECT_EQ(FromYaml(node, out).message(),
            "x.yaml with name=a=b: c: name: a section, wanted text");
  ASSERT_TRUE(ApplyOverride(node, "name='a=b: c'").ok());
  const absl::Status status = FromYaml(node, out);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(out.name, "a=b: c");
  EXPECT_EQ(out.inner.lr, 0.5);
  EXPECT_EQ(out.inner.style, Style::kLinear);
  EXPECT_EQ(out.by_name.at("x").iters, 3);
  EXPECT_EQ(out.sizes, (std::vector<int64_t>{4, 5}));
  EXPECT_FALSE(out.deep.has_value());
}

TEST(Override, ErrorsNameTheOverride) {
  ConfigNode node = Parse("inner: {lr: 1}");
  for (const char* text : {"inner.lr", "=5", "a..b=1", ".a=1", "a.=1", ""}) {
    EXPECT_EQ(ApplyOverride(node, text).message(),
              absl::StrCat("override ", text,
                           ": not an assignment, wanted a.b=value"));
  }
  EXPECT_EQ(
      ApplyOverride(node, "inner.lr.x=1").message(),
      "x.yaml with inner.lr.x=1: inner.lr: 1 in x.yaml, wanted a section");
  EXPECT_EQ(ApplyOverride(node, "a=[1").message().substr(0, 29),
            "x.yaml with a=[1: a: not YAML");
  ASSERT_TRUE(ApplyOverride(node, "inner.itres=2").ok());
  Outer out;
  EXPECT_EQ(FromYaml(node, out).message(),
            "x.yaml with inner.itres=2: inner.itres: unknown key, did you mean "
            "inner.iters?");
  ASSERT_TRUE(ApplyOverride(node, "inner={lr: slow}").ok());
  EXPECT_EQ(
      FromYaml(node, out).message(),
      "x.yaml with inner={lr: slow}: inner.lr: \"slow\", wanted a number");
}

TEST(ToYaml, ReadsBackEqual) {
  Outer a;
  a.inner.lr = 0.1 + 0.2;
  a.inner.iters = std::numeric_limits<int64_t>::min();
  a.deep = {{1e-300, std::nullopt, -0.5, 1e22, 1e-5, 100.0}};
  a.by_name["one two"] = {};
  a.by_name["~"].clip.reset();
  a.flags.clear();
  for (const std::string& name :
       {std::string("plain/path-1.txt"), std::string(""), std::string("null"),
        std::string("~"), std::string("- a: \"b\" # c"), std::string("1.50"),
        std::string("\n\ttab\\ \x01 \xc3\xa9"), std::string("*x"),
        std::string("-1x"), std::string("true"), std::string("a:"),
        std::string("---"), std::string("..."), std::string(" a ")}) {
    a.name = name;
    const std::string text = ToYaml(a);
    Outer b;
    const absl::Status status = FromYaml(Parse(text), b);
    ASSERT_TRUE(status.ok()) << status << "\n" << text;
    EXPECT_TRUE(ConfigEqual(a, b)) << text;
    EXPECT_EQ(b.name, name);
    EXPECT_EQ(b.inner.lr, a.inner.lr);
    EXPECT_EQ(b.deep, a.deep);
    b.inner.small += 1;
    EXPECT_FALSE(ConfigEqual(a, b));
  }
}

TEST(ToYaml, Text) {
  Inner inner;
  inner.lr = 1e-5;
  EXPECT_EQ(ToYaml(inner),
            "lr: 1.0e-05\niters: 10\nsmall: 1\nclip: 1.0\nstyle: cosine\n");
  const std::string text =
      "a:\n  - - 1\n    - x: 2\n      y: {}\n  - []\n\"b c\":\n  d: null\n";
  EXPECT_EQ(ToYaml(Parse(text)), text);
}

TEST(ReadKey, ReadsOneOfMany) {
  const ConfigNode node = Parse("{lr: 2, other: x, none: null, deep: [1]}");
  double lr = 1;
  std::optional<std::vector<double>> deep;
  EXPECT_TRUE(ReadKey(node, "absent", lr).ok());
  EXPECT_TRUE(ReadKey(node, "none", lr).ok());
  EXPECT_EQ(lr, 1);
  EXPECT_TRUE(ReadKey(node, "lr", lr).ok());
  EXPECT_TRUE(ReadKey(node, "deep", deep).ok());
  EXPECT_EQ(lr, 2);
  EXPECT_EQ(deep, std::vector<double>{1});
  EXPECT_EQ(ReadKey(node, "other", lr).message(),
            "x.yaml: other: \"x\", wanted a number");
}

}  // namespace
}  // namespace mimo
