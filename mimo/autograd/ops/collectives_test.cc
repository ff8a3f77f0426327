// Each pair against its definition, from what all ranks put in: values of small
// integers, so that sums are exact.
#include "mimo/autograd/ops/collectives.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "gtest/gtest.h"
#include "mimo/nn/parallel_testing.h"

namespace mimo {
namespace {

constexpr int64_t kHidden = 3;

// Rank r's number at a place.
double Number(int r, int64_t place, int64_t salt) {
  return static_cast<double>((r * 31 + place * 7 + salt * 5) % 17);
}
Values Matrix(int r, int64_t rows, int64_t salt) {
  Values values(rows * kHidden);
  for (size_t i = 0; i < values.size(); ++i) values[i] = Number(r, i, salt);
  return values;
}
Values Sum(int ranks, int64_t rows, int64_t salt) {
  Values sum(rows * kHidden);
  for (int r = 0; r < ranks; ++r)
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += Number(r, i, salt);
  return sum;
}
Values Concatenated(int ranks, int64_t rows, int64_t salt) {
  Values all;
  for (int r = 0; r < ranks; ++r) {
    const Values part = Matrix(r, rows, salt);
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}
// Rows [begin, end), those past the last being zeros.
Values Rows(Values x, int64_t begin, int64_t end) {
  x.resize(std::max<int64_t>(x.size(), end * kHidden));
  return Values(x.begin() + begin * kHidden, x.begin() + end * kHidden);
}

using Op = std::function<Var(const Context&, const Var&, Communicator*)>;

struct Result {
  Values out, dx;
};
// The op on this rank's x, then its backward from dout.
Result Pass(Communicator* group, const Values& x, const Values& dout,
            const Op& op) {
  Allocator allocator;
  Tape tape;
  const Context ctx{.allocator = &allocator, .tape = &tape};
  const auto tensor = [&](const Values& values) {
    return Tensor::From<double>(
        allocator, {static_cast<int64_t>(values.size()) / kHidden, kHidden},
        values);
  };
  const Var in = tape.Input(tensor(x));
  const Var out = op(ctx, in, group);
  EXPECT_FALSE(op(ctx, Var{in.value}, group).needs_grad());
  tape.Backward(ctx, {{out.slot, tensor(dout)}});
  return {ValuesOf(out.value), ValuesOf(tape.TakeGrad(in.slot))};
}

TEST(Collectives, AreTheirDefinitions) {
  for (int n : {1, 2, 3, 4}) {
    for (int64_t tokens : {1, 4, 7}) {
      OnRanks(n, [&](Communicator& group) {
        const int r = group.rank();
        const int64_t count = (tokens + n - 1) / n;
        const int64_t begin = r * count, end = begin + count;
        const auto run = [&](const Values& x, const Values& dout, Op op) {
          return Pass(&group, x, dout, op);
        };
        // Whole tensors are alike on all ranks where the pair says so.
        Result got = run(Matrix(r, count, 1), Matrix(r, n * count, 2),
                         GatherTokensReduceGrad);
        EXPECT_EQ(got.out, Concatenated(n, count, 1));
        EXPECT_EQ(got.dx, Rows(Sum(n, n * count, 2), begin, end));

        got = run(Matrix(r, count, 1), Matrix(0, tokens, 2),
                  [&](const Context& ctx, const Var& x, Communicator* g) {
                    return GatherTokensSliceGrad(ctx, x, tokens, g);
                  });
        EXPECT_EQ(got.out, Rows(Concatenated(n, count, 1), 0, tokens));
        EXPECT_EQ(got.dx, Rows(Matrix(0, tokens, 2), begin, end));

        got = run(Matrix(0, tokens, 1), Matrix(r, count, 2),
                  SliceTokensGatherGrad);
        EXPECT_EQ(got.out, Rows(Matrix(0, tokens, 1), begin, end));
        EXPECT_EQ(got.dx, Rows(Concatenated(n, count, 2), 0, tokens));

        got = run(Matrix(r, tokens, 1), Matrix(r, count, 2),
                  ReduceTokensGatherGrad);
        EXPECT_EQ(got.out, Rows(Sum(n, tokens, 1), begin, end));
        EXPECT_EQ(got.dx, Rows(Concatenated(n, count, 2), 0, tokens));

        got = run(Matrix(r, tokens, 1), Matrix(0, tokens, 2), ReduceCopyGrad);
        EXPECT_EQ(got.out, Sum(n, tokens, 1));
        EXPECT_EQ(got.dx, Matrix(0, tokens, 2));

        got = run(Matrix(0, tokens, 1), Matrix(r, tokens, 2), CopyReduceGrad);
        EXPECT_EQ(got.out, Matrix(0, tokens, 1));
        EXPECT_EQ(got.dx, Sum(n, tokens, 2));
      });
    }
  }
}

TEST(Collectives, WithoutAGroupAreTheValueItself) {
  const Values x = Matrix(0, 3, 1), dout = Matrix(0, 3, 2);
  for (const Op& op :
       {Op(GatherTokensReduceGrad), Op(SliceTokensGatherGrad),
        Op(ReduceTokensGatherGrad), Op(ReduceCopyGrad), Op(CopyReduceGrad)}) {
    const Result got = Pass(nullptr, x, dout, op);
    EXPECT_EQ(got.out, x);
    EXPECT_EQ(got.dx, dout);
  }
}

}  // namespace
}  // namespace mimo
