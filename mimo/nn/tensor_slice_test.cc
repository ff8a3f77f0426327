#include "mimo/nn/tensor_slice.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace mimo {
namespace {

// Which elements of the whole a sharding holds, one at a time.
std::vector<int64_t> Literal(const Shape& whole, const Sharding& sharding) {
  std::vector<int64_t> places;
  int64_t outer = 1, inner = 1;
  for (int d = 0; d < static_cast<int>(whole.size()); ++d)
    (d < sharding.dim ? outer : inner) *= d == sharding.dim ? 1 : whole[d];
  for (int64_t o = 0; o < outer; ++o) {
    for (const Shard& shard : sharding.shards) {
      for (int64_t i = 0; i < shard.size * inner; ++i) {
        places.push_back((o * whole[sharding.dim] + shard.begin) * inner + i);
      }
    }
  }
  return places;
}

TEST(TensorSlice, RunsAreThoseElementsInOrder) {
  std::mt19937 rng(5);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(rng() % n); };
  for (int round = 0; round < 2000; ++round) {
    Shape whole;
    for (int64_t d = 1 + below(3); d > 0; --d) whole.push_back(1 + below(6));
    Sharding sharding = {.dim = static_cast<int>(below(whole.size()))};
    for (int64_t n = 1 + below(3); n > 0; --n) {
      const int64_t begin = below(whole[sharding.dim]);
      sharding.shards.push_back(
          {begin, below(whole[sharding.dim] - begin + 1)});
    }
    const std::vector<int64_t> all = Literal(whole, sharding);
    const int64_t begin = below(all.size() + 1);
    const int64_t size = below(all.size() - begin + 1);
    std::vector<int64_t> places;
    for (const SliceRun& run : RunsOf(whole, sharding, begin, size)) {
      EXPECT_EQ(run.from, static_cast<int64_t>(places.size()));
      for (int64_t i = 0; i < run.size; ++i) places.push_back(run.at + i);
    }
    EXPECT_EQ(places, std::vector<int64_t>(all.begin() + begin,
                                           all.begin() + begin + size))
        << ToString(whole) << " dimension " << sharding.dim;
  }
}

TEST(TensorSlice, RowsThatAreNeighboursAreOneRun) {
  EXPECT_EQ(RunsOf({8, 3}, {0, {{2, 4}}}, 1, 10).size(), 1u);
  EXPECT_EQ(RunsOf({8, 3}, {0, {{2, 3}, {5, 2}}}, 0, 15).size(), 1u);
  EXPECT_EQ(RunsOf({8, 3}, {0, {{0, 3}, {5, 2}}}, 0, 15).size(), 2u);
  EXPECT_EQ(RunsOf({8, 3}, {1, {{1, 2}}}, 0, 16).size(), 8u);
  EXPECT_EQ(RunsOf({8, 3}, {}, 5, 19).size(), 1u);
  EXPECT_EQ(RunsOf({}, {}, 0, 1).size(), 1u);
  EXPECT_TRUE(RunsOf({0, 4}, {}, 0, 0).empty());
}

TEST(TensorSliceDeathTest, ASliceLiesInTheWhole) {
  EXPECT_DEATH(RunsOf({4, 4}, {1, {{2, 3}}}, 0, 12), "2 \\+ 3 of 4");
  EXPECT_DEATH(RunsOf({4, 4}, {1, {{2, 2}}}, 4, 5), "elements 4 to 9 of 8");
}

}  // namespace
}  // namespace mimo
