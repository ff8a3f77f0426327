#include "kernels/embedding/rows.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

// About one index in four is negative; few rows, so many are equal.
std::vector<int32_t> RandomIndex(int64_t rows, int64_t table_rows) {
  std::mt19937 bits(7);
  std::vector<int32_t> index(rows);
  for (int32_t& i : index)
    i = bits() % 4 == 0 ? -1 : static_cast<int32_t>(bits() % table_rows);
  return index;
}

template <typename T>
std::vector<T> Gather(const std::vector<T>& table,
                      const std::vector<int32_t>& index, int64_t hidden,
                      const std::vector<T>* old = nullptr) {
  std::vector<T> out =
      old == nullptr ? Poisoned<T>(index.size() * hidden) : *old;
  GatherRows({.table = table.data(),
              .index = index.data(),
              .out = out.data(),
              .accumulate = old != nullptr,
              .rows = static_cast<int64_t>(index.size()),
              .table_rows = static_cast<int64_t>(table.size()) / hidden,
              .hidden = hidden,
              .dtype = DTypeOf<T>::value},
             Stream());
  return out;
}

template <typename T>
std::vector<T> ScatterAdd(const std::vector<T>& rows,
                          const std::vector<int32_t>& index, int64_t table_rows,
                          int64_t hidden, const std::vector<T>* old = nullptr) {
  std::vector<T> table =
      old == nullptr ? Poisoned<T>(table_rows * hidden) : *old;
  ScatterAddRows({.rows_in = rows.data(),
                  .index = index.data(),
                  .table = table.data(),
                  .beta = old == nullptr ? 0.0f : 1.0f,
                  .rows = static_cast<int64_t>(index.size()),
                  .table_rows = table_rows,
                  .hidden = hidden,
                  .dtype = DTypeOf<T>::value,
                  .table_dtype = DTypeOf<T>::value},
                 Stream());
  return table;
}

struct Shape {
  int64_t rows, table_rows, hidden;
};
constexpr Shape kShapes[] = {{1, 1, 1},     {0, 3, 5},     {13, 7, 1},
                             {101, 11, 67}, {1031, 5, 31}, {3, 1009, 128}};

TEST(Rows, GatherIsTheFormula) {
  for (const auto& [rows, table_rows, hidden] : kShapes) {
    const auto table = RandomVector<float>(table_rows * hidden, 1);
    const auto old = RandomVector<float>(rows * hidden, 2);
    const std::vector<int32_t> index = RandomIndex(rows, table_rows);
    std::vector<float> expected(rows * hidden), added = old;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t h = 0; h < hidden && index[i] >= 0; ++h) {
        expected[i * hidden + h] = table[index[i] * hidden + h];
        added[i * hidden + h] += table[index[i] * hidden + h];
      }
    }
    EXPECT_EQ(Gather(table, index, hidden), expected);
    EXPECT_EQ(Gather(table, index, hidden, &old), added);
  }
}

// Additions happen in the order of i, so float32 is exact too.
TEST(Rows, ScatterAddIsTheFormula) {
  for (const auto& [rows, table_rows, hidden] : kShapes) {
    const auto in = RandomVector<float>(rows * hidden, 1);
    const auto old = RandomVector<float>(table_rows * hidden, 2);
    const std::vector<int32_t> index = RandomIndex(rows, table_rows);
    std::vector<float> expected(table_rows * hidden), added = old;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t h = 0; h < hidden && index[i] >= 0; ++h) {
        expected[index[i] * hidden + h] += in[i * hidden + h];
        added[index[i] * hidden + h] += in[i * hidden + h];
      }
    }
    EXPECT_EQ(ScatterAdd(in, index, table_rows, hidden), expected);
    EXPECT_EQ(ScatterAdd(in, index, table_rows, hidden, &old), added);
  }
}

TEST(Rows, EachIsTheOthersGradient) {
  const std::vector<int32_t> index = RandomIndex(13, 5);
  const auto table = RandomVector<double>(5 * 3, 1);
  const auto rows = RandomVector<double>(13 * 3, 2);
  // <Gather(table), rows> = <table, ScatterAdd(rows)> for linear maps.
  EXPECT_NEAR(Dot(Gather(table, index, 3), rows),
              Dot(table, ScatterAdd(rows, index, 5, 3)), 1e-13);
  EXPECT_LT(GradCheck(
                [&](const std::vector<double>& moved) {
                  return Dot(Gather(moved, index, 3), rows);
                },
                table, ScatterAdd(rows, index, 5, 3)),
            1e-8);
}

TEST(Rows, ThreadsDoNotChangeABit) {
  const std::vector<int32_t> index = RandomIndex(1031, 11);
  const auto in = RandomVector<float>(1031 * 257, 1);
  const auto table = RandomVector<float>(11 * 257, 2);
  SetNumThreads(1);
  const std::vector<float> scattered = ScatterAdd(in, index, 11, 257);
  const std::vector<float> gathered = Gather(table, index, 257);
  SetNumThreads(3);
  EXPECT_EQ(ScatterAdd(in, index, 11, 257), scattered);
  EXPECT_EQ(Gather(table, index, 257), gathered);
}

TEST(RowsDeathTest, IndexPastTheTable) {
  const std::vector<float> table(3), rows(1);
  EXPECT_DEATH(Gather(table, {3}, 1), "GatherRows: index\\[0\\]");
  EXPECT_DEATH(ScatterAdd(rows, {3}, 3, 1), "ScatterAddRows: index\\[0\\]");
}

}  // namespace
}  // namespace mimo::kernels
