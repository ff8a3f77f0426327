// What DataLoader reads, gives and leaves alone on ranks of any layout.
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "gtest/gtest.h"
#include "mimo/data/data_loader.h"
#include "mimo/data/share_testing.h"

namespace mimo {
namespace {

const SpecialTokens kSpecial = {{"images", 98}, {"sounds", 99}};

constexpr uint64_t kSeed = 5;

// A part of a sample, "text" or a modality's: visit, index.
using Read = std::tuple<std::string, int64_t, int64_t>;

// Samples of random text with 0, 1 or 3 images of 4 tokens and as many sounds
// of one token or other. Notes what it has made, and how often.
class Album : public Dataset {
 public:
  explicit Album(bool items = true) : items_(items) {}
  int64_t size() const override { return 29; }
  absl::StatusOr<Sample> Text(int64_t index, int64_t visit) const override {
    Note("text", index, visit);
    Sample sample = Make(index, visit);
    sample.modalities.clear();
    return sample;
  }
  absl::StatusOr<std::vector<ModalityItem>> Items(
      int64_t index, int64_t visit,
      const std::string& modality) const override {
    Note(modality, index, visit);
    return Make(index, visit).modalities[modality];
  }
  int64_t ItemTokens(int64_t index, int64_t visit,
                     const std::string& modality) const override {
    const int64_t tokens = modality == "images" ? 4 : 1;
    return Make(index, visit).modalities[modality].size() * tokens;
  }

  // All of it.
  Sample Make(int64_t index, int64_t visit) const {
    PhiloxSequence random = DataDraws(1, DataDraw::kMock, visit, index);
    Sample sample;
    const auto add = [&](const std::string& modality, int64_t tokens) {
      const int counts[] = {0, 1, 3};
      const int count = items_ ? counts[random.Below(3)] : 0;
      for (int i = 0; i < count; ++i) {
        const int text = random.Below(4);
        for (int t = 0; t < text; ++t)
          sample.input_ids.push_back(random.Below(98));
        sample.input_ids.insert(sample.input_ids.end(), tokens,
                                kSpecial.at(modality));
        const float value = 1000 * visit + 10 * index + i;
        sample.modalities[modality].push_back({{1, 2}, {value, -value}});
      }
    };
    add("images", 4);
    add("sounds", 1);
    sample.input_ids.push_back(random.Below(98));
    sample.labels = sample.input_ids;
    return sample;
  }

  mutable std::map<Read, int> reads;

 private:
  void Note(const std::string& part, int64_t index, int64_t visit) const {
    absl::MutexLock lock(&mutex_);
    ++reads[{part, visit, index}];
  }

  const bool items_;
  mutable absl::Mutex mutex_;  // workers write, then the test reads
};

std::unique_ptr<DataLoader> Loader(std::shared_ptr<const Dataset> dataset,
                                   const DataShare& share, int64_t consumed = 0,
                                   int workers = 0) {
  auto loader =
      DataLoader::Create(std::move(dataset), {.share = share,
                                              .seed = kSeed,
                                              .consumed_samples = consumed,
                                              .num_workers = workers});
  EXPECT_TRUE(loader.ok()) << loader.status();
  return *std::move(loader);
}

OpenShare Opener(bool items, int workers = 0) {
  return [=](const DataShare& share) -> NextBatch {
    std::shared_ptr<DataLoader> loader =
        Loader(std::make_shared<Album>(items), share, 0, workers);
    return [loader] { return loader->Next(); };
  };
}

TEST(DataShare, EachRankHasItsSlicesOfTheSameMicroBatches) {
  ExpectSharedOut(12, kSpecial, 5, Opener(true));
  ExpectSharedOut(24, kSpecial, 2, Opener(true, 3));
}

TEST(DataShare, TextOnlyMicroBatches) {
  ExpectSharedOut(12, kSpecial, 3, Opener(false));
  // Who reads no text still knows that there is nothing to encode.
  DataShare share = ShareOfRank(WholeShare(12, kSpecial), 2, 1, 3);
  const auto batch = Loader(std::make_shared<Album>(false), share)->Next();
  ASSERT_TRUE(batch.ok());
  EXPECT_EQ(batch->batch, 0);
  EXPECT_EQ(batch->LabelledTokens(), 0);
  EXPECT_EQ(batch->sample_rows.at("images"), std::vector<int64_t>(12));
}

TEST(DataShareDeathTest, SlicesComeOutWhole) {
  const auto open = [](const DataShare& share) {
    return DataLoader::Create(std::make_shared<Album>(), {.share = share});
  };
  EXPECT_DEATH(
      (void)open({.samples = 4, .modalities = {{"images", {0, 3}}}}).ok(),
      "images: slice 0 of 3 of 4 samples");
  EXPECT_DEATH((void)open({.samples = 4, .text = DataSlice{2, 2}}).ok(),
               "text: slice 2 of 2 of 4 samples");
}

// No part of a sample is made twice over all ranks, so none by a rank that does
// not use it.
TEST(DataShare, NothingOutsideTheSlicesIsRead) {
  const DataShare whole = WholeShare(12, kSpecial);
  for (const int replicas : {1, 2, 3, 4, 6}) {
    for (const int lanes : {1, 2, 3, 4, 6}) {
      const auto all = std::make_shared<Album>();
      const auto loader = Loader(all, whole);
      for (int i = 0; i < 7; ++i) ASSERT_TRUE(loader->Next().ok());
      auto unread = all->reads;
      EXPECT_EQ(unread.size(), 3u * 7 * 12);
      for (int rank = 0; rank <= std::max(replicas, lanes); ++rank) {
        const auto album = std::make_shared<Album>();
        const DataShare share = ShareOfRank(whole, rank, replicas, lanes);
        const auto own = Loader(album, share);
        for (int i = 0; i < 7; ++i) ASSERT_TRUE(own->Next().ok());
        EXPECT_EQ(album->reads.size(),
                  7u * ((rank < replicas ? 12 / replicas : 0) +
                        (rank < lanes ? 2 * 12 / lanes : 0)));
        for (const auto& [part, times] : album->reads) {
          EXPECT_EQ(times, 1);
          EXPECT_EQ(unread.erase(part), 1u);
        }
      }
      EXPECT_TRUE(unread.empty());
    }
  }
}

// The stream that ranks together read on from where others stopped.
TEST(DataShare, OtherRanksGoOnWithTheSameStream) {
  constexpr int64_t kMicroBatch = 3;  // of a replica
  const std::pair<int, int> layouts[] = {{4, 3}, {2, 6},  {1, 1}, {8, 2},
                                         {1, 3}, {4, 12}, {2, 1}};
  const auto album = std::make_shared<Album>();
  int64_t consumed = 0;
  for (const auto& [replicas, lanes] : layouts) {
    SCOPED_TRACE(testing::Message() << replicas << " x " << lanes);
    const int64_t samples = kMicroBatch * replicas;
    const DataShare whole = WholeShare(samples, kSpecial);
    std::vector<DataShare> shares;
    std::vector<std::unique_ptr<DataLoader>> ranks;
    for (int rank = 0; rank < std::max(replicas, lanes); ++rank) {
      shares.push_back(ShareOfRank(whole, rank, replicas, lanes));
      ranks.push_back(Loader(std::make_shared<Album>(), shares.back(), consumed,
                             /*workers=*/rank % 3));
    }
    for (int i = 0; i < 3; ++i, consumed += samples) {
      std::vector<Sample> stream;
      for (int64_t at = consumed; at < consumed + samples; ++at) {
        const int64_t epoch = at / album->size();
        const int64_t index =
            EpochOrder(kSeed, epoch, album->size())[at % album->size()];
        stream.push_back(album->Make(index, epoch));
      }
      const MicroBatch all = Collate(stream, 0);
      for (size_t rank = 0; rank < ranks.size(); ++rank) {
        ExpectEqual(*ranks[rank]->Next(), PartOf(all, shares[rank], kSpecial));
        EXPECT_EQ(ranks[rank]->consumed_samples(), consumed + samples);
      }
    }
  }
}

}  // namespace
}  // namespace mimo
