#include "mimo/data/text/tokenizer.h"

#include <sentencepiece_trainer.h>

#include <cstdlib>

#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<std::string> Sentences() {
  std::vector<std::string> out;
  for (int i = 0; i < 20; ++i) {
    for (const char* place : {"Italy", "Germany", "Japan", "Côte d’Ivoire"}) {
      out.push_back("USER: Which flag is this? ASSISTANT:");
      out.push_back(std::string("The flag of ") + place + ".");
    }
  }
  return out;
}

Tokenizer Trained(int64_t vocab_size = 400) {
  auto bytes = Tokenizer::Train(Sentences(), vocab_size);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  auto tokenizer = Tokenizer::Parse(*bytes, "trained");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *tokenizer;
}

TEST(Tokenizer, SpecialTokens) {
  const Tokenizer t = Trained();
  EXPECT_EQ(t.pad_id(), 0);
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.image_id(), 4);
  EXPECT_GT(t.size(), 260);  // 5 special, 256 bytes, pieces
  EXPECT_LE(t.size(), 400);
  EXPECT_EQ(t.Decode({1, 4, 4, 2, 0, 3, -7, 100000}), "");
}

TEST(Tokenizer, RoundTripOfAnyText) {
  const Tokenizer t = Trained();
  for (const std::string text : {"The flag of Italy.", "Zażółć gęślą jaźń",
                                 "Côte d’Ivoire", "日本 🇮🇹", "x", ""}) {
    EXPECT_EQ(t.Decode(t.Encode(text)), text);
  }
  EXPECT_LE(t.Encode("The flag of Italy.").size(), 6u);
}

TEST(Tokenizer, TrainingIsDeterministic) {
  EXPECT_EQ(Trained().bytes(), Trained().bytes());
}

TEST(Tokenizer, SmallCorpusGivesFewerTokens) {
  EXPECT_LT(Trained(5000).size(), 500);
}

TEST(Tokenizer, TrainErrors) {
  for (const auto& result :
       {Tokenizer::Train({}, 400), Tokenizer::Train(Sentences(), 100),
        Tokenizer::Train(Sentences(), -1)}) {
    ASSERT_FALSE(result.ok());
    EXPECT_THAT(std::string(result.status().message()),
                AllOf(HasSubstr("tokenizer"), Not(HasSubstr("\n"))));
  }
}

TEST(Tokenizer, CheckVocab) {
  Tokenizer t = Trained();
  EXPECT_TRUE(t.CheckVocab(t.size()).ok());
  EXPECT_THAT(std::string(t.CheckVocab(100).message()),
              HasSubstr("vocab_size: 100, wanted at least"));
  t.set_image_id(32000);
  EXPECT_TRUE(t.CheckVocab(32001).ok());
  EXPECT_EQ(t.CheckVocab(32000).message(),
            "vocab_size: 32000, too small for the special token <image> with "
            "id 32000");
}

// Llama's kind: no pad, no <image>, white space kept.
TEST(Tokenizer, LlamaKind) {
  const std::string folder = getenv("TEST_TMPDIR");
  ASSERT_TRUE(
      WriteFile(folder + "/text", absl::StrJoin(Sentences(), "\n")).ok());
  ASSERT_TRUE(sentencepiece::SentencePieceTrainer::Train(
                  std::unordered_map<std::string, std::string>{
                      {"input", folder + "/text"},
                      {"model_prefix", folder + "/llama"},
                      {"model_type", "bpe"},
                      {"vocab_size", "320"},
                      {"byte_fallback", "true"},
                      {"normalization_rule_name", "identity"},
                      {"remove_extra_whitespaces", "false"},
                      {"minloglevel", "5"}})
                  .ok());
  auto t = Tokenizer::Load(folder + "/llama.model");
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ(t->bos_id(), 1);
  EXPECT_EQ(t->eos_id(), 2);
  EXPECT_EQ(t->pad_id(), 2);
  EXPECT_EQ(t->image_id(), -1);
  EXPECT_EQ(t->Decode(t->Encode("a\nb")), "a\nb");
}

TEST(Tokenizer, DamagedFiles) {
  const std::string bytes = Trained().bytes();
  for (size_t n = 0; n < bytes.size(); n += 1 + bytes.size() / 97) {
    const auto cut = Tokenizer::Parse(bytes.substr(0, n), "cut.model");
    if (cut.ok()) continue;  // whole pieces may be all that is missing
    EXPECT_THAT(std::string(cut.status().message()),
                AllOf(HasSubstr("cut.model: "), Not(HasSubstr("\n"))));
  }
  for (size_t i = 0; i < bytes.size(); i += 1 + bytes.size() / 197) {
    std::string damaged = bytes;
    damaged[i] ^= 0x2a;
    const auto parsed = Tokenizer::Parse(damaged, "bad.model");
    if (!parsed.ok()) {
      EXPECT_THAT(std::string(parsed.status().message()),
                  AllOf(HasSubstr("bad.model: "), Not(HasSubstr("\n"))));
    }
  }
  EXPECT_FALSE(Tokenizer::Parse("", "x").ok());
  EXPECT_FALSE(Tokenizer::Parse("{\"json\": 1}", "x").ok());
  EXPECT_FALSE(Tokenizer::Load("/no/such.model").ok());
  EXPECT_THAT(std::string(Tokenizer::Load("/tmp").status().message()),
              HasSubstr("a directory"));
}

}  // namespace
}  // namespace mimo
