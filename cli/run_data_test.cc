// What ranks of a run read of each type of data.
#include "cli/run_data.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mimo/config/config_node.h"
#include "mimo/data/dataset.h"
#include "mimo/data/file.h"
#include "mimo/data/share_testing.h"
#include "models/clip/config.h"
#include "models/llava/llava.h"
#include "models/llava/model_section.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

const SpecialTokens kSpecial = {{"images", 4}};

MimoModelConfig Model() {
  const auto node = ParseYaml(R"(
type: llava
language: {num_layers: 1, hidden_size: 8, ffn_hidden_size: 8,
           num_attention_heads: 2, num_query_groups: 2, vocab_size: 320,
           max_sequence_length: 64}
vision: {num_layers: 1, hidden_size: 8, ffn_hidden_size: 8,
         num_attention_heads: 2, image_size: 8, patch_size: 4,
         feature_layer: -1}
special_token_ids: {images: 4}
)",
                              "model");
  EXPECT_TRUE(node.ok()) << node.status();
  const auto section = ReadModelSection(*node, BuiltinModules());
  EXPECT_TRUE(section.ok()) << section.status();
  return section->model;
}

// 19 conversations of 0, 1 and 3 pictures in turn.
std::string WriteConversations() {
  const char* const pictures[] = {"house", "rocket", "flag_it", "dog_face"};
  std::string lines;
  for (int i = 0; i < 19; ++i) {
    const int counts[] = {0, 1, 3};
    std::string images, text;
    for (int p = 0; p < counts[i % 3]; ++p) {
      absl::StrAppend(&images, p == 0 ? "" : ", ", "\"images/",
                      pictures[(i + p) % 4], ".png\"");
      absl::StrAppend(&text, "<image>\\n");
    }
    absl::StrAppend(
        &lines, "{\"id\": \"", i, "\", \"image\": [", images,
        "], \"conversations\": [{\"from\": \"human\", \"value\": \"", text,
        "What is this?\"}, {\"from\": \"gpt\", \"value\": \"",
        std::string(1 + i % 7, 'a'), "\"}]}\n");
  }
  const std::string path = testing::TempDir() + "/conversations.jsonl";
  EXPECT_TRUE(WriteFile(path, lines).ok());
  return path;
}

RunData Conversations() {
  DataConfig config;
  config.type = DataType::kLlavaJson;
  config.path = config.validation_path = WriteConversations();
  config.image_root = "tests/fixtures";
  config.tokenizer_vocab_size = 300;
  config.augment = true;
  config.num_workers = 0;
  auto data = OpenData(config, Model(), "");
  EXPECT_TRUE(data.ok()) << data.status();
  return *std::move(data);
}

Sources Make(const RunData& data, const DataShare& share) {
  auto sources = MakeSources(data, Model(), /*seed=*/3, share);
  EXPECT_TRUE(sources.ok()) << sources.status();
  return *std::move(sources);
}

using Member = std::unique_ptr<BatchSource> Sources::*;

OpenShare Opener(const RunData& data, Member member, int64_t consumed = 0) {
  return [&data, member, consumed](const DataShare& share) -> NextBatch {
    std::shared_ptr<BatchSource> source = std::move(Make(data, share).*member);
    EXPECT_TRUE(source->Seek(consumed).ok());
    return [source] { return source->Next(); };
  };
}

TEST(MakeSources, EachRankHasItsSlices) {
  const RunData conversations = Conversations();
  for (const Member member :
       {&Sources::train, &Sources::validation, &Sources::questions})
    ExpectSharedOut(12, kSpecial, 2, Opener(conversations, member));
  RunData mock;
  mock.config.type = DataType::kMock;
  mock.config.samples = 20;
  mock.config.num_workers = 0;
  ExpectSharedOut(12, kSpecial, 2, Opener(mock, &Sources::train));
}

// Of the first micro-batch nothing but a rank's slices could be read.
TEST(MakeSources, ReadsNothingOutsideItsSlices) {
  constexpr int64_t kSamples = 12;
  const RunData data = Conversations();
  const std::vector<int64_t> drawn = EpochOrder(/*seed=*/3, 0, 19);
  for (const Member member :
       {&Sources::train, &Sources::validation, &Sources::questions}) {
    for (int rank = 0; rank < 4; ++rank) {
      SCOPED_TRACE(rank);
      const DataShare share =
          ShareOfRank(WholeShare(kSamples, kSpecial), rank, 3, 2);
      RunData broken = data;
      ConversationList& list = member == &Sources::train
                                   ? broken.corpus.train[0].conversations
                                   : broken.corpus.validation[0].conversations;
      std::vector<Conversation> conversations = list.All();
      for (int64_t i = 0; i < 19; ++i) {
        Conversation& c =
            conversations[member == &Sources::questions ? i : drawn[i]];
        if (!share.text || !share.text->Has(i, kSamples))
          c.turns[0].question = "<image><image><image><image>";
        const auto images = share.modalities.find("images");
        if (images != share.modalities.end() && images->second.Has(i, kSamples))
          continue;
        for (Picture& picture : c.pictures) picture.path += ".gone";
      }
      list = conversations;
      const auto want = Opener(data, member)(share)();
      const auto got = Opener(broken, member)(share)();
      ASSERT_TRUE(want.ok()) << want.status();
      ASSERT_TRUE(got.ok()) << got.status();
      ExpectEqual(*got, *want);
      EXPECT_FALSE(
          Opener(broken, member)(WholeShare(kSamples, kSpecial))().ok());
    }
  }
}

// Text-only ranks need no pictures, and lanes none but their own.
TEST(MakeSources, ReadsNoOtherPictures) {
  RunData data = Conversations();
  std::vector<Conversation> all = data.corpus.train[0].conversations.All();
  for (Conversation& c : all)
    for (Picture& picture : c.pictures) picture.path += ".gone";
  data.corpus.train[0].conversations = all;
  data.config.cache_images = true;
  DataShare text = WholeShare(6, kSpecial);
  text.modalities.clear();
  const Sources sources = Make(data, text);
  for (int i = 0; i < 4; ++i) {
    const auto batch = sources.train->Next();
    ASSERT_TRUE(batch.ok()) << batch.status();
    EXPECT_EQ(batch->batch, 6);
  }
  EXPECT_THAT(std::string(MakeSources(data, Model(), 3, WholeShare(6, kSpecial))
                              .status()
                              .message()),
              HasSubstr(".png.gone: no such file"));
}

// A picture's tokens are those of all its encoders.
TEST(MakeSources, EncodersLookAtTheSamePictures) {
  RunData mock;
  mock.config.type = DataType::kMock;
  mock.config.samples = 2;
  mock.config.num_workers = 0;
  MimoModelConfig model = Model();
  auto& encoders = model.modality_submodules_spec["images"].encoders;
  encoders.emplace_back("second", encoders[0].second);
  auto* second = encoders[1].second.config.As<ClipVitConfig>();
  second->patch_size = 2;
  const DataShare share = WholeShare(1, kSpecial);
  const auto message = [&] {
    return std::string(MakeSources(mock, model, 3, share).status().message());
  };
  auto sources = MakeSources(mock, model, 3, share);
  ASSERT_TRUE(sources.ok()) << sources.status();
  const auto batch = sources->train->Next();
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(std::ranges::count(batch->input_ids, 4), 4 + 16);
  second->image_size = 12;
  EXPECT_EQ(message(),
            "model.modalities.images.encoders.second.image_size: 12, wanted 8 "
            "as of the encoders before");
  encoders[1].second = model.language_model_spec;
  EXPECT_EQ(message(),
            "model.modalities.images.encoders.second: not a clip_vit, wanted "
            "one for data of conversations");
  model.modality_submodules_spec.clear();
  EXPECT_EQ(message(),
            "model: no modality images, wanted one for data of conversations");
}

std::vector<int32_t> Row(const MicroBatch& batch, int64_t b) {
  const auto begin = batch.input_ids.begin() + b * batch.seq;
  return {begin, begin + batch.lengths[b]};
}

// Global micro-batches of other sizes go on with the stream of single samples.
TEST(MakeSources, OtherReplicasGoOnWithTheSameStream) {
  const RunData data = Conversations();
  for (const Member member : {&Sources::train, &Sources::validation}) {
    const NextBatch one = Opener(data, member)(WholeShare(1, kSpecial));
    int64_t consumed = 0;
    for (const int64_t samples : {12, 6, 3, 24}) {
      const auto batch =
          Opener(data, member, consumed)(WholeShare(samples, kSpecial))();
      ASSERT_TRUE(batch.ok()) << batch.status();
      std::vector<float> pixels;
      for (int64_t b = 0; b < samples; ++b) {
        const auto sample = one();
        ASSERT_TRUE(sample.ok()) << sample.status();
        EXPECT_EQ(Row(*batch, b), Row(*sample, 0));
        for (const auto& [modality, items] : sample->modalities)
          pixels.insert(pixels.end(), items.values.begin(), items.values.end());
      }
      EXPECT_EQ(batch->modalities.at("images").values, pixels);
      consumed += samples;
    }
  }
}

}  // namespace
}  // namespace mimo
