#include "mimo/data/text/conversation.h"

#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

ConversationTemplate Template(int64_t max_sequence_length = 100) {
  const Conversation corpus = {
      .turns = {{"Which flag is this?", "The flag of Italy."},
                {"Which continent?", "Europe."}}};
  auto bytes = Tokenizer::Train(TokenizerSentences({corpus}), 400);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  auto tokenizer = Tokenizer::Parse(*bytes, "trained");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return {*tokenizer, /*tokens_per_image=*/3, max_sequence_length};
}

std::vector<Turn> One(std::string question, std::string answer) {
  return {Turn{std::move(question), std::move(answer)}};
}

TEST(Conversation, LearnsAnswersAndTheirEndOnly) {
  const ConversationTemplate t = Template();
  const std::vector<Turn> turns = {
      {"<image>\nWhich flag is this?", "The flag of Italy."},
      {"Which continent?", "Europe."}};
  const auto sample = t.Encode(turns, 1);
  ASSERT_TRUE(sample.ok()) << sample.status();
  std::vector<int32_t> want = {t.tokenizer.bos_id()}, labels = {-100};
  const auto add = [&](std::string text, bool learned) {
    for (int32_t id : t.tokenizer.Encode(text)) {
      want.push_back(id);
      labels.push_back(learned ? id : -100);
    }
    if (!learned) return;
    want.push_back(t.tokenizer.eos_id());
    labels.push_back(t.tokenizer.eos_id());
  };
  add("USER:", false);
  want.insert(want.end(), 3, t.tokenizer.image_id());
  labels.insert(labels.end(), 3, -100);
  add("Which flag is this? ASSISTANT:", false);
  add("The flag of Italy.", true);
  add("USER: Which continent? ASSISTANT:", false);
  add("Europe.", true);
  EXPECT_EQ(sample->input_ids, want);
  EXPECT_EQ(sample->labels, labels);
}

TEST(Conversation, PromptIsTheSampleUpToTheLastAnswer) {
  const ConversationTemplate t = Template();
  const std::vector<Turn> turns = {
      {"<image>\nWhich flag is this?", "The flag of Italy."},
      {"Which continent?", "Europe."}};
  const auto sample = t.Encode(turns, 1);
  const auto prompt = t.EncodePrompt(turns, 1);
  ASSERT_TRUE(sample.ok() && prompt.ok());
  ASSERT_LT(prompt->size(), sample->input_ids.size());
  EXPECT_TRUE(
      std::equal(prompt->begin(), prompt->end(), sample->input_ids.begin()));
  EXPECT_EQ(sample->labels[prompt->size() - 1], -100);
  EXPECT_NE(sample->labels[prompt->size()], -100);
}

TEST(Conversation, ImageCountMustMatch) {
  const ConversationTemplate t = Template();
  EXPECT_EQ(t.Encode(One("<image> and <image>", "a"), 1).status().message(),
            "2 <image> in the text for 1 images, wanted one each");
  EXPECT_EQ(t.Encode(One("none", "a"), 1).status().message(),
            "0 <image> in the text for 1 images, wanted one each");
  EXPECT_TRUE(t.Encode(One("<image><image>", "a"), 2).ok());
  EXPECT_TRUE(t.Encode(One("none", "a"), 0).ok());
  // What an answer says is text.
  EXPECT_TRUE(t.Encode(One("none", "<image>"), 0).ok());
}

TEST(Conversation, TooLong) {
  const auto length = Template()
                          .Encode(One("Which continent?", "Europe."), 0)
                          ->input_ids.size();
  EXPECT_TRUE(
      Template(length).Encode(One("Which continent?", "Europe."), 0).ok());
  EXPECT_THAT(std::string(Template(length - 1)
                              .Encode(One("Which continent?", "Europe."), 0)
                              .status()
                              .message()),
              HasSubstr("wanted at most max_sequence_length"));
}

TEST(PlaceImages, PutsTheMissingOnesFirst) {
  EXPECT_EQ(PlaceImages("What?", 2), "<image>\n<image>\nWhat?");
  EXPECT_EQ(PlaceImages("What is <image>?", 1), "What is <image>?");
  EXPECT_EQ(CountImages("<image><image>x<imag"), 2);
}

}  // namespace
}  // namespace mimo
