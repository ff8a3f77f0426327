#include "mimo/data/corpus.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mimo/data/data_loader.h"
#include "mimo/data/file.h"
#include "mimo/data/llava_json.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

DataConfig Fixtures() {
  DataConfig config;
  config.type = DataType::kLlavaJson;
  config.path = "tests/fixtures/captions.jsonl";
  config.tokenizer_vocab_size = 400;
  return config;
}

Corpus Load(const DataConfig& config) {
  auto corpus = LoadCorpus(config);
  EXPECT_TRUE(corpus.ok()) << corpus.status();
  return corpus.value_or(Corpus{});
}

ConversationTemplate Template(const DataConfig& config, const Corpus& corpus) {
  const auto tokenizer = MakeTokenizer(config, corpus);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return {*tokenizer, /*tokens_per_image=*/4, /*max_sequence_length=*/128};
}

std::shared_ptr<const Dataset> Training(const DataConfig& config,
                                        const Corpus& corpus,
                                        uint64_t seed = 1) {
  auto dataset =
      TrainingDataset(config, corpus, Template(config, corpus), 16, seed);
  EXPECT_TRUE(dataset.ok()) << dataset.status();
  return *dataset;
}

TEST(Corpus, FixturesEndToEnd) {
  const DataConfig config = Fixtures();
  const Corpus corpus = Load(config);
  ASSERT_EQ(corpus.train.size(), 1u);
  EXPECT_TRUE(corpus.validation.empty());
  const auto dataset = Training(config, corpus);
  ASSERT_EQ(dataset->size(), 13);
  for (int64_t i = 0; i < dataset->size(); ++i) {
    ASSERT_TRUE(dataset->Text(i, 0).ok()) << dataset->Text(i, 0).status();
    const auto items = dataset->Items(i, 0, "images");
    ASSERT_TRUE(items.ok()) << items.status();
    EXPECT_EQ(items->at(0).shape, (std::vector<int64_t>{3, 16, 16}));
    EXPECT_TRUE(dataset->Items(i, 0, "sounds")->empty());
  }
  auto loader =
      DataLoader::Create(dataset, {.share = {.samples = 5,
                                             .text = DataSlice{},
                                             .modalities = {{"images", {}}}},
                                   .seed = 3,
                                   .num_workers = 2});
  ASSERT_TRUE(loader.ok());
  for (int i = 0; i < 6; ++i) EXPECT_TRUE((*loader)->Next().ok());
}

TEST(Corpus, ValidationByShareAndByFile) {
  DataConfig config = Fixtures();
  config.validation_fraction = 0.4;
  const Corpus share = Load(config);
  ASSERT_EQ(share.validation.size(), 1u);
  EXPECT_EQ(share.train[0].conversations.size() +
                share.validation[0].conversations.size(),
            13u);
  config.validation_fraction = 0;
  config.validation_path = config.path;
  const Corpus file = Load(config);
  EXPECT_EQ(file.validation[0].conversations.size(), 13u);
  const auto dataset = ValidationDataset(config, file.validation[0],
                                         Template(config, file), 16, 1);
  ASSERT_TRUE(dataset.ok());
  EXPECT_EQ((*dataset)->Items(0, 0, "images")->at(0).values,
            (*dataset)->Items(0, 1, "images")->at(0).values);
}

TEST(Corpus, QuestionsAloneWithTheViewsOfTheirConversations) {
  DataConfig config = Fixtures();
  Corpus corpus = Load(config);
  Split split{.name = "asked", .augment = kTrainAugment};
  std::vector<Conversation> asked = corpus.train[0].conversations.All();
  asked.resize(3);
  asked[0].turns = {{"Who?", "A."}, {"<image>\nWhy?", "Bcd."}};
  asked[2].turns = {{"<image>How?", "Ef."}};
  split.conversations = asked;
  const ConversationTemplate format = Template(config, corpus);
  const auto whole = ValidationDataset(config, split, format, 16, 1);
  const auto questions = QuestionDataset(config, split, format, 16, 1);
  ASSERT_TRUE(whole.ok() && questions.ok());
  ASSERT_EQ((*questions)->size(), 2 + asked[1].turns.size() + 1);
  const auto expect = [&](int64_t index, int64_t conversation, Turn turn) {
    const auto got = (*questions)->Text(index, 0);
    ASSERT_TRUE(got.ok()) << got.status();
    const auto wanted = format.Encode({turn}, 1);
    EXPECT_EQ(got->input_ids, wanted->input_ids) << index;
    EXPECT_EQ(got->labels, wanted->labels) << index;
    EXPECT_EQ((*questions)->Items(index, 0, "images")->at(0).values,
              (*whole)->Items(conversation, 0, "images")->at(0).values)
        << index;
    EXPECT_EQ((*questions)->ItemTokens(index, 0, "images"),
              std::ranges::count(got->input_ids, format.tokenizer.image_id()));
  };
  expect(0, 0, {"<image>\nWho?", "A."});
  expect(1, 0, {"<image>\nWhy?", "Bcd."});
  expect(2, 1, asked[1].turns[0]);
  expect((*questions)->size() - 1, 2, {"<image>How?", "Ef."});
}

TEST(Corpus, AugmentedViewsDependOnSeedSampleAndVisitAlone) {
  DataConfig config = Fixtures();
  config.augment = true;
  const Corpus corpus = Load(config);
  for (const Fit fit : {Fit::kCrop, Fit::kSquash}) {
    config.fit = fit;
    config.cache_images = false;
    const auto slow = Training(config, corpus);
    config.cache_images = true;
    const auto fast = Training(config, corpus);
    const auto other = Training(config, corpus, /*seed=*/2);
    const auto values = [](const Dataset& d, int i, int visit) {
      return d.Items(i, visit, "images")->at(0).values;
    };
    for (int i = 0; i < 13; ++i) {
      EXPECT_EQ(values(*slow, i, 2), values(*fast, i, 2)) << i;
      EXPECT_NE(values(*fast, i, 2), values(*fast, i, 3)) << i;
      EXPECT_NE(values(*fast, i, 2), values(*other, i, 2)) << i;
    }
  }
}

TEST(ConversationDataset, DrawsTurnsAndKeepsThePictureFirst) {
  DataConfig config = Fixtures();
  Corpus corpus = Load(config);
  Conversation c = corpus.train[0].conversations[0];
  c.turns = {{"<image>\nWhat is it?", "A.", ""},
             {"And what colour?", "B.", ""},
             {"How large?", "C.", ""}};
  corpus.train[0].conversations = std::vector<Conversation>{c};
  config.turns = 2;
  const auto dataset = Training(config, corpus);
  const Tokenizer tokenizer = Template(config, corpus).tokenizer;
  std::set<std::string> seen;
  for (int visit = 0; visit < 60; ++visit) {
    const auto sample = dataset->Text(0, visit);
    ASSERT_TRUE(sample.ok()) << sample.status();
    std::vector<int32_t> answers;
    for (const int32_t label : sample->labels) {
      if (label >= 0 && label != tokenizer.eos_id()) answers.push_back(label);
    }
    seen.insert(tokenizer.Decode(answers));
    // bos, "USER:", then the picture.
    const auto user = tokenizer.Encode("USER:").size();
    EXPECT_EQ(sample->input_ids[1 + user], tokenizer.image_id());
    EXPECT_EQ(sample->input_ids, dataset->Text(0, visit)->input_ids);
    EXPECT_EQ(std::ranges::count(sample->input_ids, tokenizer.image_id()),
              dataset->ItemTokens(0, visit, "images"));
  }
  EXPECT_EQ(seen, (std::set<std::string>{"A. B.", "A. C.", "B. A.", "B. C.",
                                         "C. A.", "C. B."}));
}

// Neither when a text is made nor ahead of it: here there are none.
TEST(Corpus, PicturesThatAreNotWantedAreNotRead) {
  DataConfig config = Fixtures();
  const auto whole = Training(config, Load(config));
  config.image_root = "elsewhere";
  const Corpus corpus = Load(config);
  config.cache_images = true;
  const auto text =
      TrainingDataset(config, corpus, Template(config, corpus), 16, 1,
                      /*pictures=*/false);
  ASSERT_TRUE(text.ok()) << text.status();
  for (int64_t i = 0; i < whole->size(); ++i) {
    const auto sample = (*text)->Text(i, 0);
    ASSERT_TRUE(sample.ok()) << sample.status();
    EXPECT_EQ(sample->input_ids, whole->Text(i, 0)->input_ids);
    EXPECT_EQ(sample->labels, whole->Text(i, 0)->labels);
    EXPECT_FALSE((*text)->Items(i, 0, "images").ok());
  }
}

TEST(Corpus, Mistakes) {
  DataConfig config;
  config.name = "cats";
  EXPECT_THAT(std::string(LoadCorpus(config).status().message()),
              HasSubstr("data.name: cats, wanted flags"));
  config = Fixtures();
  config.path = "no.json";
  EXPECT_THAT(std::string(LoadCorpus(config).status().message()),
              HasSubstr("no.json: no such file"));
  config = Fixtures();
  config.image_root = "elsewhere";
  const Corpus corpus = Load(config);
  EXPECT_THAT(
      std::string(
          Training(config, corpus)->Items(0, 0, "images").status().message()),
      HasSubstr("elsewhere/images/red_apple.png: no such file"));
  config.cache_images = true;  // told at once
  EXPECT_THAT(std::string(TrainingDataset(config, corpus,
                                          Template(config, corpus), 16, 1)
                              .status()
                              .message()),
              HasSubstr("elsewhere/images/red_apple.png: no such file"));
  config.tokenizer = "tests/fixtures/captions.jsonl";
  EXPECT_THAT(std::string(MakeTokenizer(config, corpus).status().message()),
              HasSubstr("not a sentencepiece model"));
  ConversationTemplate format = Template(Fixtures(), corpus);
  format.max_sequence_length = 5;
  config = Fixtures();
  EXPECT_THAT(std::string((*TrainingDataset(config, corpus, format, 16, 1))
                              ->Text(2, 0)
                              .status()
                              .message()),
              HasSubstr("data: conversation 2 (id \"002\"): "));
}

TEST(DataConfig, Validate) {
  EXPECT_TRUE(DataConfig{}.Validate().ok());
  DataConfig config;
  config.type = DataType::kTensors;
  EXPECT_THAT(std::string(config.Validate().message()), HasSubstr("path: "));
  config = DataConfig{};
  config.validation_fraction = 1;
  EXPECT_THAT(std::string(config.Validate().message()),
              HasSubstr("validation_fraction: 1"));
  config = DataConfig{};
  config.turns = -1;
  EXPECT_FALSE(config.Validate().ok());
}

TEST(MockDataset, NeverDrawsTheImageToken) {
  const MockDataset mock({.samples = 5,
                          .sequence_length = 40,
                          .vocab_size = 7,
                          .tokens_per_image = 4,
                          .image_size = 8,
                          .image_id = 3,
                          .seed = 1});
  for (int i = 0; i < 5; ++i) {
    const auto sample = mock.Text(i, 0);
    ASSERT_TRUE(sample.ok());
    ASSERT_EQ(sample->input_ids.size(), 40u);
    for (int t = 0; t < 40; ++t) {
      EXPECT_EQ(sample->input_ids[t] == 3, t < 4);
      EXPECT_LT(sample->input_ids[t], 7);
    }
    EXPECT_EQ(sample->input_ids, mock.Text(i, 0)->input_ids);
    EXPECT_NE(sample->input_ids, mock.Text(i, 1)->input_ids);
    EXPECT_EQ(mock.ItemTokens(i, 0, "images"), 4);
    EXPECT_NE(mock.Items(i, 0, "images")->at(0).values,
              mock.Items(i, 1, "images")->at(0).values);
  }
}

// The main job's set: in a fresh folder, and read again from it.
TEST(Corpus, FlagsAndFashionMnist) {
  const auto here = std::filesystem::canonical("mimo/data/corpus_test.cc");
  setenv("BUILD_WORKSPACE_DIRECTORY",
         (here.parent_path() / "../..").lexically_normal().c_str(), 1);
  DataConfig config;
  config.name = "flags+fashion_mnist";
  config.data_dir = std::string(getenv("TEST_TMPDIR")) + "/data";
  config.augment = true;
  config.fit = Fit::kSquash;
  config.turns = 2;
  for (int time = 0; time < 2; ++time) {
    const Corpus corpus = Load(config);
    ASSERT_EQ(corpus.train.size(), 2u);
    ASSERT_EQ(corpus.validation.size(), 4u);
    EXPECT_EQ(corpus.validation[0].name, "heldout_style");
    EXPECT_TRUE(corpus.validation[2].augment.has_value());  // kgeography
    const auto dataset = Training(config, corpus);
    EXPECT_EQ(dataset->size(), 120000);
    for (int i = 0; i < 2; ++i) {
      EXPECT_TRUE(dataset->Text(i, 0).ok());
      EXPECT_TRUE(dataset->Items(i, 0, "images").ok());
    }
  }
}

}  // namespace
}  // namespace mimo
