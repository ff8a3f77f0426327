#include "mimo/data/data_loader.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <set>

#include "gtest/gtest.h"

namespace mimo {
namespace {

// Sample i of epoch e is i + 2 tokens of value 1000 e + i, and one 1-value
// item.
class Numbers : public Dataset {
 public:
  explicit Numbers(int64_t size, int64_t bad = -1) : size_(size), bad_(bad) {}
  int64_t size() const override { return size_; }
  absl::StatusOr<Sample> Text(int64_t index, int64_t visit) const override {
    if (index == bad_) return absl::InvalidArgumentError("bad sample");
    // Threads finish out of order.
    std::this_thread::sleep_for(std::chrono::microseconds(index * 37 % 200));
    Sample sample;
    sample.input_ids.assign(index % 5 + 2, 1000 * visit + index);
    sample.labels = sample.input_ids;
    sample.labels[0] = kIgnoreLabel;
    return sample;
  }
  absl::StatusOr<std::vector<ModalityItem>> Items(
      int64_t index, int64_t /*visit*/,
      const std::string& /*modality*/) const override {
    return std::vector<ModalityItem>{{{1, 1, 1}, {float(index)}}};
  }
  int64_t ItemTokens(int64_t index, int64_t visit,
                     const std::string& /*modality*/) const override {
    return 100 * visit + index;
  }

 private:
  int64_t size_, bad_;
};

DataShare Whole(int64_t samples) {
  return {
      .samples = samples, .text = DataSlice{}, .modalities = {{"images", {}}}};
}

std::unique_ptr<DataLoader> Loader(int64_t size, DataLoaderOptions options,
                                   int64_t bad = -1) {
  auto loader =
      DataLoader::Create(std::make_shared<Numbers>(size, bad), options);
  EXPECT_TRUE(loader.ok()) << loader.status();
  return *std::move(loader);
}

std::vector<int32_t> Take(DataLoader& loader, int batches) {
  std::vector<int32_t> out;
  for (int i = 0; i < batches; ++i) {
    const auto batch = loader.Next();
    EXPECT_TRUE(batch.ok()) << batch.status();
    for (int64_t b = 0; b < batch->batch; ++b) {
      out.push_back(batch->input_ids[b * batch->seq]);
    }
    out.push_back(-batch->seq);
    for (float v : batch->modalities.at("images").values) out.push_back(v);
  }
  return out;
}

TEST(DataLoader, SameOrderWhateverTheWorkers) {
  DataLoaderOptions options = {.share = Whole(3), .seed = 5};
  options.num_workers = 0;
  const auto want = Take(*Loader(17, options), 20);
  for (const int workers : {1, 2, 7}) {
    options.num_workers = workers;
    EXPECT_EQ(Take(*Loader(17, options), 20), want) << workers;
  }
  options.seed = 6;
  EXPECT_NE(Take(*Loader(17, options), 20), want);
}

// Which samples' texts were made.
class Watched : public Numbers {
 public:
  using Numbers::Numbers;
  absl::StatusOr<Sample> Text(int64_t index, int64_t visit) const override {
    opened.insert({visit, index});
    return Numbers::Text(index, visit);
  }
  mutable std::set<std::pair<int64_t, int64_t>> opened;  // of one thread
};

std::vector<float> Pixels(const MicroBatch& batch) {
  return batch.modalities.at("images").values;
}

// Replicas read the rows of one replica's larger micro-batch, in order.
TEST(DataLoader, ReplicasShareOutEachGlobalMicroBatch) {
  for (const int64_t size : {1, 2, 3, 6}) {
    for (const int64_t consumed : {0, 18}) {
      auto all = Loader(17, {.share = Whole(6),
                             .seed = 5,
                             .consumed_samples = consumed,
                             .num_workers = 0});
      std::vector<std::shared_ptr<Watched>> data;
      std::vector<std::unique_ptr<DataLoader>> replicas;
      for (int64_t rank = 0; rank < size; ++rank) {
        const DataSlice slice{rank, size};
        data.push_back(std::make_shared<Watched>(17));
        replicas.push_back(*DataLoader::Create(
            data.back(), {.share = {.samples = 6,
                                    .text = slice,
                                    .modalities = {{"images", slice}}},
                          .seed = 5,
                          .consumed_samples = consumed,
                          .num_workers = 0}));
      }
      for (int i = 0; i < 5; ++i) {
        std::vector<float> together;
        for (auto& replica : replicas) {
          const std::vector<float> own = Pixels(*replica->Next());
          together.insert(together.end(), own.begin(), own.end());
          EXPECT_EQ(replica->consumed_samples(), consumed + 6 * (i + 1));
        }
        EXPECT_EQ(together, Pixels(*all->Next()));
      }
      std::set<std::pair<int64_t, int64_t>> opened;
      for (const auto& part : data) {
        EXPECT_EQ(part->opened.size(), size_t(30 / size));
        opened.insert(part->opened.begin(), part->opened.end());
      }
      EXPECT_EQ(opened.size(), 30u);
    }
  }
}

TEST(DataLoader, EveryEpochHasEachSampleOnce) {
  auto loader = Loader(10, {.share = Whole(4), .seed = 1});
  std::vector<int32_t> drawn;
  while (drawn.size() < 20) {  // micro-batches of 4 lie across epochs of 10
    const auto batch = loader->Next();
    ASSERT_TRUE(batch.ok());
    for (int b = 0; b < 4; ++b) {
      drawn.push_back(batch->input_ids[b * batch->seq]);
    }
  }
  std::vector<int32_t> first(drawn.begin(), drawn.begin() + 10);
  std::vector<int32_t> second(drawn.begin() + 10, drawn.end());
  for (auto& value : second) value -= 1000;  // the visit is the epoch
  EXPECT_NE(first, second);
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  std::vector<int32_t> all(10);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(first, all);
  EXPECT_EQ(second, all);
}

TEST(DataLoader, GoesOnWhereItStopped) {
  DataLoaderOptions options = {.share = Whole(3), .seed = 9, .num_workers = 2};
  auto loader = Loader(7, options);
  const auto all = Take(*loader, 12);
  auto begin = Loader(7, options);
  auto got = Take(*begin, 5);
  EXPECT_EQ(begin->consumed_samples(), 15);
  options.consumed_samples = begin->consumed_samples();
  const auto rest = Take(*Loader(7, options), 7);
  got.insert(got.end(), rest.begin(), rest.end());
  EXPECT_EQ(got, all);
}

TEST(DataLoader, WithoutShuffleInOrder) {
  auto loader = Loader(4, {.share = Whole(4), .shuffle = false});
  const auto batch = loader->Next();
  ASSERT_TRUE(batch.ok());
  EXPECT_EQ(batch->seq, 5);
  EXPECT_EQ(batch->input_ids,
            (std::vector<int32_t>{0, 0, 0, 0, 0, 1, 1, 1, 0, 0,  //
                                  2, 2, 2, 2, 0, 3, 3, 3, 3, 3}));
}

TEST(DataLoader, ErrorsComeInTheirPlace) {
  for (const int workers : {0, 3}) {
    auto loader =
        Loader(6, {.share = Whole(2), .num_workers = workers, .shuffle = false},
               /*bad=*/3);
    EXPECT_TRUE(loader->Next().ok());
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(loader->Next().status().message(), "bad sample");
    }
    EXPECT_EQ(loader->consumed_samples(), 2);
  }
  EXPECT_EQ(
      DataLoader::Create(std::make_shared<Numbers>(0), {}).status().message(),
      "data: 0 samples, wanted at least 1");
}

TEST(DataLoader, OneSampleManyEpochsABatch) {
  const auto batch = Loader(1, {.share = Whole(5), .num_workers = 2})->Next();
  ASSERT_TRUE(batch.ok());
  EXPECT_EQ(batch->input_ids,
            (std::vector<int32_t>{0, 0, 1000, 1000, 2000, 2000, 3000, 3000,
                                  4000, 4000}));
}

TEST(EpochOrder, IsUniform) {
  // Each of the 24 orders of 4 comes about 1/24 of 4800 times: 200, standard
  // deviation 14.
  std::map<std::vector<int64_t>, int> counts;
  for (int epoch = 0; epoch < 4800; ++epoch) ++counts[EpochOrder(3, epoch, 4)];
  EXPECT_EQ(counts.size(), 24u);
  for (const auto& [order, count] : counts) EXPECT_NEAR(count, 200, 70);
}

TEST(Collate, PadsAndCounts) {
  Sample a, b;
  a.input_ids = {5, 6, 7};
  a.labels = {5, kIgnoreLabel, 7};  // the first label is never predicted
  b.input_ids = {8};
  b.labels = {kIgnoreLabel};
  b.modalities["images"] = {{{1, 2}, {1, 2}}, {{1, 2}, {3, 4}}};
  const MicroBatch batch = Collate({a, b}, 9);
  EXPECT_EQ(batch.batch, 2);
  EXPECT_EQ(batch.seq, 3);
  EXPECT_EQ(batch.input_ids, (std::vector<int32_t>{5, 6, 7, 8, 9, 9}));
  EXPECT_EQ(batch.labels, (std::vector<int32_t>{5, -100, 7, -100, -100, -100}));
  EXPECT_EQ(batch.lengths, (std::vector<int32_t>{3, 1}));
  EXPECT_EQ(batch.LabelledTokens(), 1);
  EXPECT_EQ(batch.modalities.at("images").shape,
            (std::vector<int64_t>{2, 1, 2}));
  EXPECT_EQ(batch.modalities.at("images").values,
            (std::vector<float>{1, 2, 3, 4}));
  EXPECT_EQ(Collate({}, 0).LabelledTokens(), 0);
}

TEST(MixedDataset, TakesOneOfEachInTurn) {
  const MixedDataset mixed(
      {std::make_shared<Numbers>(4), std::make_shared<Numbers>(3)});
  ASSERT_EQ(mixed.size(), 8);
  std::vector<int32_t> firsts;
  for (int visit = 0; visit < 2; ++visit) {
    for (int i = 0; i < 8; ++i) {
      const int32_t first = mixed.Text(i, visit)->input_ids[0];
      firsts.push_back(first);
      EXPECT_EQ(mixed.Items(i, visit, "images")->at(0).values,
                std::vector<float>{float(first % 1000)});
      EXPECT_EQ(mixed.ItemTokens(i, visit, "images"),
                first / 1000 * 100 + first % 1000);
    }
  }
  // Of the second, three samples a visit.
  EXPECT_EQ(firsts, (std::vector<int32_t>{0, 0, 1, 1, 2, 2, 3, 1000,  //
                                          1000, 1001, 1001, 1002, 1002, 2000,
                                          1003, 2001}));
}

}  // namespace
}  // namespace mimo
