#include "mimo/data/llava_json.h"

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kTurn[] =
    R"("conversations": [{"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A bag.", "kind": "name"}])";

absl::StatusOr<ConversationList> Parse(const std::string& text,
                                       const std::string& image_root) {
  const std::string path = testing::TempDir() + "/f.json";
  CHECK_OK(WriteFile(path, text));
  return ReadLlavaJson(path, image_root);
}

std::string Error(const std::string& text) {
  const auto parsed = Parse(text, "root");
  EXPECT_FALSE(parsed.ok()) << text;
  const std::string message(parsed.status().message());
  EXPECT_THAT(message, AllOf(HasSubstr("f.json: "), Not(HasSubstr("\n"))));
  return message;
}

TEST(LlavaJson, Fixtures) {
  const auto read = ReadLlavaJson("tests/fixtures/captions.jsonl");
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), 13u);
  const Conversation& italy = (*read)[5];
  EXPECT_EQ(italy.id, "005");
  ASSERT_EQ(italy.pictures.size(), 1u);
  EXPECT_EQ(italy.pictures[0].path, "tests/fixtures/images/flag_it.png");
  ASSERT_EQ(italy.turns.size(), 1u);
  EXPECT_EQ(italy.turns[0].question, "<image>\nWhat is in the picture?");
  EXPECT_EQ(italy.turns[0].answer, "The flag of Italy.");
  EXPECT_EQ(italy.about.at("licence"), "public domain");
}

TEST(LlavaJson, ArrayAndLinesAreTheSame) {
  std::string item =
      absl::StrCat(R"({"id": 7, "image": "a.png", )", kTurn, "}");
  std::erase(item, '\n');
  const auto array = Parse(absl::StrCat(" [", item, ",\n", item, "]"), "r");
  const auto lines = Parse(absl::StrCat(item, "\n\n", item, "\r\n"), "r");
  ASSERT_TRUE(array.ok()) << array.status();
  ASSERT_TRUE(lines.ok()) << lines.status();
  EXPECT_EQ(ToLlavaJson(array->All()), ToLlavaJson(lines->All()));
  ASSERT_EQ(array->size(), 2u);
  EXPECT_EQ(ToLlavaJson({(*array)[1]}), ToLlavaJson({(*array)[0]}));
  EXPECT_EQ((*array)[0].id, "7");
  EXPECT_EQ((*array)[0].pictures[0].path, "r/a.png");
  EXPECT_EQ((*array)[0].turns[0].kind, "name");
}

TEST(LlavaJson, RoundTrip) {
  Conversation two = {.id = "\"quoted\" \n é"};
  two.pictures = {{"/a.png", nullptr}, {"/b.png", nullptr}};
  two.turns = {{"<image> or <image>?", "The first.", "choice"},
               {"Sure?", "Yes.", ""}};
  two.about = {{"country", "IT"}};
  const auto back = Parse(ToLlavaJson({two}), "/");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(ToLlavaJson(back->All()), ToLlavaJson({two}));
  EXPECT_EQ((*back)[0].id, two.id);
  EXPECT_EQ((*back)[0].pictures[1].path, "/b.png");
  EXPECT_EQ((*back)[0].turns[1].answer, "Yes.");
  EXPECT_EQ((*back)[0].about, two.about);
}

TEST(LlavaJson, TextOnly) {
  const auto parsed = Parse(
      R"([{"conversations": [{"from": "user", "value": "Hi"},
                             {"from": "assistant", "value": "Hello"}]}])",
      "");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE((*parsed)[0].pictures.empty());
}

TEST(LlavaJson, Mistakes) {
  EXPECT_THAT(Error(""), HasSubstr("an empty file"));
  EXPECT_THAT(Error("[{\"id\": 1, "), HasSubstr("not JSON"));
  EXPECT_THAT(Error("hello"), HasSubstr("line 1: not JSON"));
  EXPECT_THAT(Error("[1]"), HasSubstr("item 0: a number, wanted an object"));
  EXPECT_THAT(Error(R"([{"id": "1"}])"), HasSubstr("\"conversations\""));
  EXPECT_THAT(Error(R"([{"conversations": []}])"),
              HasSubstr("item 0: no list"));
  EXPECT_THAT(Error(R"([{"conversations": [{"value": "x"}]}])"),
              HasSubstr("turn 0: no \"from\""));
  EXPECT_THAT(
      Error(R"([{"conversations": [{"from": "robot", "value": "x"}]}])"),
      HasSubstr("\"from\" is \"robot\", wanted \"human\" or \"gpt\""));
  EXPECT_THAT(Error(R"([{"conversations": [{"from": "gpt", "value": "x"}]}])"),
              HasSubstr("wanted human and gpt in turn"));
  EXPECT_THAT(Error(R"([{"conversations": [{"from": "human", "value": 3}]}])"),
              HasSubstr("\"value\" is a number, wanted a string"));
  EXPECT_THAT(
      Error(R"([{"conversations": [{"from": "human", "value": "x"}]}])"),
      HasSubstr("the last question has no answer"));
  EXPECT_THAT(Error(absl::StrCat("[{", kTurn, "}]")),
              HasSubstr("1 <image> for 0 images"));
  EXPECT_THAT(Error(absl::StrCat(R"([{"image": ["a", "b"], )", kTurn, "}]")),
              HasSubstr("1 <image> for 2 images"));
  EXPECT_THAT(Error(absl::StrCat(R"([{"image": 3, )", kTurn, "}]")),
              HasSubstr("\"image\" is a number"));
  EXPECT_THAT(std::string(ReadLlavaJson("/no/such").status().message()),
              HasSubstr("/no/such: no such file"));
  EXPECT_THAT(std::string(ReadLlavaJson("tests").status().message()),
              HasSubstr("a directory"));
}

TEST(SplitByHash, KeepsPicturesTogether) {
  std::vector<Conversation> all;
  for (int i = 0; i < 2000; ++i) {
    Conversation c = {.id = absl::StrCat(i)};
    c.turns = {{"<image>", "x", ""}};
    c.pictures = {{absl::StrCat("p", i / 2, ".png"), nullptr}};
    all.push_back(c);
  }
  const auto [train, validation] = SplitByHash(all, 0.1);
  EXPECT_EQ(train.size() + validation.size(), 2000u);
  EXPECT_NEAR(validation.size(), 200, 60);  // 1000 pairs, deviation 2 * 9.5
  for (size_t i = 0; i < validation.size(); i += 2) {
    EXPECT_EQ(validation[i].pictures[0].path,
              validation[i + 1].pictures[0].path);
  }
  EXPECT_TRUE(SplitByHash(all, 0).second.empty());
}

}  // namespace
}  // namespace mimo
