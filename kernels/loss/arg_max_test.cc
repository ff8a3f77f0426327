#include "kernels/loss/arg_max.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

class ArgMaxTest : public BackendTest {
 protected:
  Values Run(const Values& logits, int64_t rows, int64_t vocab) const {
    const Array in(backend(), logits);
    const Array out = Array::Poisoned(backend(), DType::kInt32, rows);
    ArgMax({.logits = in.data(),
            .tokens = static_cast<int32_t*>(out.data()),
            .rows = rows,
            .vocab = vocab,
            .dtype = backend().dtype},
           StreamOf(backend()));
    return out.Values();
  }
};
MIMO_ON_BACKENDS(ArgMaxTest);

// In float64, by the library.
Values Firsts(const Values& logits, int64_t rows, int64_t vocab) {
  Values firsts;
  for (int64_t t = 0; t < rows; ++t) {
    const auto row = logits.begin() + t * vocab;
    firsts.push_back(std::max_element(row, row + vocab) - row);
  }
  return firsts;
}

TEST_P(ArgMaxTest, TheFirstOfTheLargest) {
  for (const auto& [rows, vocab] : {std::pair<int64_t, int64_t>{0, 5},
                                    {1, 1},
                                    {7, 2},
                                    {13, 31},
                                    {5, 256},
                                    {3, 257},
                                    {64, 1031},
                                    {2, 32064}}) {
    Values logits = RandomValues(rows * vocab, 1, 4);
    EXPECT_EQ(Run(logits, rows, vocab), Firsts(logits, rows, vocab)) << vocab;
    // Of few values, so that each row has many equal ones.
    for (double& z : logits) z = static_cast<int>(z);
    EXPECT_EQ(Run(logits, rows, vocab), Firsts(logits, rows, vocab)) << vocab;
  }
}

TEST_P(ArgMaxTest, WhereverItIs) {
  constexpr int64_t kVocab = 523;
  Values logits(kVocab * kVocab, -3), wanted;
  for (int64_t t = 0; t < kVocab; ++t) {
    logits[t * kVocab + t] = -2;
    wanted.push_back(t);
  }
  EXPECT_EQ(Run(logits, kVocab, kVocab), wanted);
}

TEST_P(ArgMaxTest, NothingAboveMinusInfinityIsNoToken) {
  constexpr int64_t kVocab = 700;
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  Values logits(3 * kVocab, kNone);
  std::fill_n(logits.begin() + kVocab, 2 * kVocab,
              std::numeric_limits<double>::quiet_NaN());
  logits[2 * kVocab + 650] = -1e30;
  EXPECT_EQ(Run(logits, 3, kVocab), (Values{-1, -1, 650}));
}

TEST_P(ArgMaxTest, IsDeterministic) {
  const Values logits = RandomValues(300 * 1031, 2, 4);
  SetNumThreads(1);
  const Values one = Run(logits, 300, 1031);
  SetNumThreads(3);
  EXPECT_EQ(Run(logits, 300, 1031), one);
}

}  // namespace
}  // namespace mimo::kernels
