#include "kernels/embedding/rows.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

class RowsTest : public BackendTest {};
MIMO_ON_BACKENDS(RowsTest);

// About one index in four is negative; few table rows, so many are equal.
Values RandomIndex(int64_t rows, int64_t table_rows) {
  std::mt19937 bits(7);
  Values index(rows);
  for (double& i : index)
    i = bits() % 4 == 0 ? -1 - static_cast<int>(bits() % 100)
                        : static_cast<int>(bits() % table_rows);
  return index;
}

// No index >= 0 twice.
Values UniqueIndex(int64_t rows, int64_t table_rows) {
  Values index(rows, -1);
  for (int64_t i = 0; i < std::min(rows, table_rows); ++i)
    if (i % 3 != 1) index[rows - 1 - i] = i;
  return index;
}

Values Gather(const Backend& on, const Values& table, const Values& index,
              int64_t hidden, const Values* old = nullptr) {
  const int64_t rows = index.size();
  const Array table_on(on, table), index_on(on, DType::kInt32, index);
  const Array out =
      old == nullptr ? Array::Poisoned(on, rows * hidden) : Array(on, *old);
  GatherRows({.table = table_on.data(),
              .index = static_cast<const int32_t*>(index_on.data()),
              .out = out.data(),
              .accumulate = old != nullptr,
              .rows = rows,
              .table_rows = static_cast<int64_t>(table.size()) / hidden,
              .hidden = hidden,
              .dtype = on.dtype},
             StreamOf(on));
  return out.Values();
}

struct Scatter {
  const Values* old = nullptr;  // the table before; null: beta 0
  bool unique = false;
  bool main_grad = false;  // a table in the accumulator dtype
};

Values ScatterAdd(const Backend& on, const Values& rows_in, const Values& index,
                  int64_t table_rows, int64_t hidden, const Scatter& how = {}) {
  const int64_t rows = index.size();
  const DType table_dtype = how.main_grad ? AccumulatorOf(on.dtype) : on.dtype;
  const Array in(on, rows_in), index_on(on, DType::kInt32, index);
  const Array table =
      how.old == nullptr ? Array::Poisoned(on, table_dtype, table_rows * hidden)
                         : Array(on, table_dtype, *how.old);
  const Array workspace = Array::Workspace(
      on, ScatterAddRowsWorkspaceBytes(rows, how.unique, on.device));
  ScatterAddRows({.rows_in = in.data(),
                  .index = static_cast<const int32_t*>(index_on.data()),
                  .table = table.data(),
                  .beta = how.old == nullptr ? 0.0f : 1.0f,
                  .unique = how.unique,
                  .workspace = workspace.data(),
                  .rows = rows,
                  .table_rows = table_rows,
                  .hidden = hidden,
                  .dtype = on.dtype,
                  .table_dtype = table_dtype},
                 StreamOf(on));
  return table.Values();
}

struct Shape {
  int64_t rows, table_rows, hidden;
};
constexpr Shape kShapes[] = {{1, 1, 1},     {0, 3, 5},     {13, 7, 1},
                             {101, 11, 67}, {1031, 5, 31}, {3, 1009, 128},
                             {67, 13, 256}, {37, 1, 4096}, {5, 3, 8200},
                             {301, 7, 520}, {4099, 17, 64}};

// Expects one rounding of `sum` to dtype, in bfloat16 by at most 2^-8; sums in
// the accumulator dtype, of n terms, err by n 2^-24 of their absolute sum
// before it.
void ExpectRounded(const Values& got, const Values& sum, const Values& absolute,
                   int64_t terms, DType dtype) {
  ASSERT_EQ(got.size(), sum.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double rounding = dtype == DType::kBFloat16 ? 0x1p-8 : 0;
    ASSERT_NEAR(got[i], sum[i],
                (1 + rounding) * terms * 0x1p-24 * absolute[i] +
                    rounding * std::fabs(sum[i]))
        << i;
  }
}

TEST_P(RowsTest, GatherIsTheFormula) {
  for (const auto& [rows, table_rows, hidden] : kShapes) {
    SCOPED_TRACE(testing::Message()
                 << rows << " of " << table_rows << " x " << hidden);
    const Values table = RandomValues(table_rows * hidden, 1);
    const Values old = RandomValues(rows * hidden, 2);
    const Values index = RandomIndex(rows, table_rows);
    Values expected(rows * hidden), sum = old, absolute(rows * hidden, 2);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = static_cast<int64_t>(index[i]);
      for (int64_t h = 0; h < hidden && row >= 0; ++h) {
        expected[i * hidden + h] = table[row * hidden + h];
        sum[i * hidden + h] += table[row * hidden + h];
      }
    }
    EXPECT_EQ(Gather(backend(), table, index, hidden), expected);
    ExpectRounded(Gather(backend(), table, index, hidden, &old), sum, absolute,
                  1, backend().dtype);
  }
}

// Additions happen in the order of i, so float32 is exact: the same float loop.
TEST_P(RowsTest, ScatterAddIsTheFormula) {
  const DType accumulator = AccumulatorOf(backend().dtype);
  for (const auto& [rows, table_rows, hidden] : kShapes) {
    for (bool unique : {false, true}) {
      SCOPED_TRACE(testing::Message() << rows << " into " << table_rows << " x "
                                      << hidden << " unique " << unique);
      const Values in = RandomValues(rows * hidden, 1);
      const Values old = RandomValues(table_rows * hidden, 2);
      const Values index = unique ? UniqueIndex(rows, table_rows)
                                  : RandomIndex(rows, table_rows);
      for (bool accumulate : {false, true}) {
        std::vector<float> literal(table_rows * hidden);
        if (accumulate) literal.assign(old.begin(), old.end());
        Values sum(literal.begin(), literal.end()), absolute = sum;
        for (double& x : absolute) x = std::fabs(x);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t row = static_cast<int64_t>(index[i]);
          for (int64_t h = 0; h < hidden && row >= 0; ++h) {
            literal[row * hidden + h] += static_cast<float>(in[i * hidden + h]);
            sum[row * hidden + h] += in[i * hidden + h];
            absolute[row * hidden + h] += std::fabs(in[i * hidden + h]);
          }
        }
        Scatter how = {.old = accumulate ? &old : nullptr, .unique = unique};
        const Values same =
            ScatterAdd(backend(), in, index, table_rows, hidden, how);
        ExpectRounded(same, sum, absolute, rows, backend().dtype);
        how.main_grad = true;
        const Values wide =
            ScatterAdd(backend(), in, index, table_rows, hidden, how);
        if (accumulator == DType::kFloat32) {
          ASSERT_EQ(wide, Values(literal.begin(), literal.end()));
        }
      }
    }
  }
}

TEST(Rows, EachIsTheOthersGradient) {
  const Values index = RandomIndex(13, 5);
  const Values table = RandomValues(5 * 3, 1);
  const Values rows = RandomValues(13 * 3, 2);
  const Values scattered = ScatterAdd(Oracle(), rows, index, 5, 3);
  // <Gather(table), rows> = <table, ScatterAdd(rows)> for linear maps.
  EXPECT_NEAR(Dot(Gather(Oracle(), table, index, 3), rows),
              Dot(table, scattered), 1e-13);
  EXPECT_LT(GradCheck(
                [&](const Values& moved) {
                  return Dot(Gather(Oracle(), moved, index, 3), rows);
                },
                table, scattered),
            1e-8);
}

TEST_P(RowsTest, IsDeterministic) {
  const Values index = RandomIndex(1031, 11);
  const Values in = RandomValues(1031 * 257, 1);
  const Values table = RandomValues(11 * 257, 2);
  SetNumThreads(1);
  const Values scattered = ScatterAdd(backend(), in, index, 11, 257);
  const Values gathered = Gather(backend(), table, index, 257);
  SetNumThreads(3);
  EXPECT_EQ(ScatterAdd(backend(), in, index, 11, 257), scattered);
  EXPECT_EQ(Gather(backend(), table, index, 257), gathered);
}

TEST(RowsDeathTest, IndexPastTheTable) {
  const Backend cpu = {Device::kCpu, DType::kFloat32};
  EXPECT_DEATH(Gather(cpu, Values(3), {3}, 1), "GatherRows: index\\[0\\]");
  EXPECT_DEATH(ScatterAdd(cpu, {0}, {3}, 3, 1), "ScatterAddRows: index\\[0\\]");
}

TEST_P(RowsTest, IndexOfPart) {
  const Values index = RandomIndex(1001, 40);
  for (int64_t begin : {0, 3, 39}) {
    for (int64_t rows : {0, 1, 12, 40}) {
      const Array in(backend(), DType::kInt32, index);
      const Array out = Array::Poisoned(backend(), DType::kInt32, 1001);
      IndexOfPart({.index = static_cast<const int32_t*>(in.data()),
                   .out = static_cast<int32_t*>(out.data()),
                   .rows = 1001,
                   .begin = begin,
                   .table_rows = rows},
                  StreamOf(backend()));
      Values wanted;
      for (double i : index)
        wanted.push_back(begin <= i && i < begin + rows ? i - begin : -1);
      EXPECT_EQ(out.Values(), wanted);
    }
  }
}

}  // namespace
}  // namespace mimo::kernels
