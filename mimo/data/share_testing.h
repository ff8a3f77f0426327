// What ranks read, against what one rank reads, for tests.
#ifndef MIMO_MIMO_DATA_SHARE_TESTING_H_
#define MIMO_MIMO_DATA_SHARE_TESTING_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "mimo/data/batch.h"

namespace mimo {

using NextBatch = std::function<absl::StatusOr<MicroBatch>()>;
using OpenShare = std::function<NextBatch(const DataShare&)>;

using SpecialTokens = std::map<std::string, int32_t>;  // by modality

// All there is, on one rank.
inline DataShare WholeShare(int64_t samples, const SpecialTokens& special) {
  DataShare share{.samples = samples, .text = DataSlice{}};
  for (const auto& [modality, id] : special) {
    share.modalities[modality] = {};
    share.counted.push_back(modality);
  }
  return share;
}

// That of rank `rank` where text has `replicas` slices, and each modality
// `lanes` in the opposite order: some ranks have both, some one, the rest none.
inline DataShare ShareOfRank(DataShare whole, int rank, int replicas,
                             int lanes) {
  if (rank < replicas) {
    whole.text = DataSlice{rank, replicas};
  } else {
    whole.text.reset();
  }
  for (auto& [modality, slice] : whole.modalities)
    slice = {lanes - 1 - rank, lanes};
  if (rank >= lanes) whole.modalities.clear();
  return whole;
}

// What `share` has of the micro-batch `all` of one rank. The items of a
// modality have as many special tokens each.
inline MicroBatch PartOf(const MicroBatch& all, const DataShare& share,
                         const SpecialTokens& special) {
  MicroBatch part;
  for (const std::string& modality : share.counted) {
    for (auto row = all.input_ids.begin(); row != all.input_ids.end();
         row += all.seq)
      part.sample_rows[modality].push_back(
          std::count(row, row + all.seq, special.at(modality)));
  }
  if (share.text) {
    const int64_t begin = share.text->rank * all.batch / share.text->size;
    part.batch = all.batch / share.text->size;
    part.lengths.assign(all.lengths.begin() + begin,
                        all.lengths.begin() + begin + part.batch);
    part.seq = *std::max_element(part.lengths.begin(), part.lengths.end());
    for (int64_t b = begin; b < begin + part.batch; ++b) {
      const auto copy = [&](const auto& from, auto& to) {
        to.insert(to.end(), from.begin() + b * all.seq,
                  from.begin() + b * all.seq + part.seq);
      };
      copy(all.input_ids, part.input_ids);
      copy(all.labels, part.labels);
    }
  }
  for (const auto& [modality, slice] : share.modalities) {
    const auto& rows = part.sample_rows.at(modality);
    const auto begin = rows.begin() + slice.rank * all.batch / slice.size;
    const int64_t before = std::accumulate(rows.begin(), begin, int64_t{0});
    const int64_t inside =
        std::accumulate(begin, begin + all.batch / slice.size, int64_t{0});
    if (inside == 0) continue;
    const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    MicroBatch::Items items = all.modalities.at(modality);
    items.shape[0] = items.shape[0] * inside / total;
    const auto at = [&](int64_t row) {
      return items.values.begin() + row * items.values.size() / total;
    };
    items.values = {at(before), at(before + inside)};
    part.modalities[modality] = std::move(items);
  }
  return part;
}

inline void ExpectEqual(const MicroBatch& batch, const MicroBatch& want) {
  EXPECT_EQ(batch.batch, want.batch);
  EXPECT_EQ(batch.seq, want.seq);
  EXPECT_EQ(batch.input_ids, want.input_ids);
  EXPECT_EQ(batch.labels, want.labels);
  EXPECT_EQ(batch.lengths, want.lengths);
  EXPECT_EQ(batch.sample_rows, want.sample_rows);
  ASSERT_EQ(batch.modalities.size(), want.modalities.size());
  for (const auto& [modality, items] : want.modalities) {
    EXPECT_EQ(batch.modalities.at(modality).shape, items.shape);
    EXPECT_EQ(batch.modalities.at(modality).values, items.values);
  }
}

// For 1 to 6 replicas and lanes, every rank reads its part of the same
// micro-batches. `samples` is a multiple of 12.
inline void ExpectSharedOut(int64_t samples, const SpecialTokens& special,
                            int micro_batches, const OpenShare& open) {
  const DataShare whole = WholeShare(samples, special);
  for (const int replicas : {1, 2, 3, 4, 6}) {
    for (const int lanes : {1, 2, 3, 4, 6}) {
      const NextBatch all = open(whole);
      std::vector<MicroBatch> want;
      for (int i = 0; i < micro_batches; ++i) {
        auto batch = all();
        ASSERT_TRUE(batch.ok()) << batch.status();
        want.push_back(*std::move(batch));
      }
      for (int rank = 0; rank <= std::max(replicas, lanes); ++rank) {
        SCOPED_TRACE(testing::Message() << "rank " << rank << ", " << replicas
                                        << " replicas, " << lanes << " lanes");
        const DataShare share = ShareOfRank(whole, rank, replicas, lanes);
        const NextBatch own = open(share);
        for (const MicroBatch& batch : want) {
          const auto part = own();
          ASSERT_TRUE(part.ok()) << part.status();
          ExpectEqual(*part, PartOf(batch, share, special));
        }
      }
    }
  }
}

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_SHARE_TESTING_H_
