// Attention over a ring of ranks is attention over each sample alone, on one
// rank: outputs and gradients, to rounding.
#include "mimo/autograd/ops/ring_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/rotary/rotary.h"
#include "mimo/nn/parallel_testing.h"

namespace mimo {
namespace {

constexpr int64_t kHeads = 4, kGroups = 2, kDim = 8;
constexpr int64_t kWidth = (kHeads + 2 * kGroups) * kDim;
constexpr int64_t kOutWidth = kHeads * kDim;
constexpr int64_t kPadding = 3;  // rows behind a rank's

struct Case {
  DType dtype = DType::kFloat64;
  bool causal = true;
  bool rotary = true;
  std::vector<int32_t> chunks;  // of each sample; unequal: packed

  bool packed() const {
    for (int32_t chunk : chunks)
      if (chunk != chunks[0]) return true;
    return false;
  }
};

kernels::AttentionShape ShapeOf(const Case& c, int64_t batch, int64_t seq) {
  return {.batch = batch,
          .seq_q = seq,
          .seq_k = seq,
          .heads = kHeads,
          .kv_heads = kGroups,
          .head_dim = kDim,
          .causal = c.causal,
          .scale = 1 / std::sqrt(double{kDim})};
}

Tensor TensorOf(Allocator& allocator, Shape shape, DType dtype,
                const Values& values) {
  if (dtype == DType::kFloat64)
    return Tensor::From<double>(allocator, shape, values);
  const std::vector<float> floats(values.begin(), values.end());
  return Tensor::From<float>(allocator, shape, floats);
}

Rotary Tables(Allocator& allocator, DType dtype, int64_t positions) {
  Rotary rotary;
  rotary.cos = Tensor(allocator, {positions, kDim / 2}, dtype);
  rotary.sin = Tensor(allocator, {positions, kDim / 2}, dtype);
  kernels::RotaryTable(rotary.cos.data(), rotary.sin.data(), positions, kDim,
                       100, dtype);
  return rotary;
}

struct Both {
  Values out, gradient;
};

Both OneRank(const Case& c, const std::vector<int32_t>& cu_seqlens,
             const Values& qkv, const Values& dout) {
  Both all;
  for (size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    const int64_t begin = cu_seqlens[b], tokens = cu_seqlens[b + 1] - begin;
    if (tokens == 0) continue;
    const auto rows = [&](const Values& x, int64_t width) {
      return Values(x.begin() + begin * width,
                    x.begin() + (begin + tokens) * width);
    };
    Allocator allocator;
    Tape tape;
    const Context ctx{.allocator = &allocator, .tape = &tape};
    Rotary rotary = Tables(allocator, c.dtype, tokens);
    rotary.seq = tokens;
    rotary.first_position = 0;
    const Var x = tape.Input(
        TensorOf(allocator, {tokens, kWidth}, c.dtype, rows(qkv, kWidth)));
    const Var out =
        Attention(ctx, x, ShapeOf(c, 1, tokens), c.rotary ? &rotary : nullptr);
    tape.Backward(ctx, {{out.slot, TensorOf(allocator, {tokens, kOutWidth},
                                            c.dtype, rows(dout, kOutWidth))}});
    for (auto [to, from] : {std::pair(&all.out, ValuesOf(out.value)),
                            {&all.gradient, ValuesOf(tape.TakeGrad(x.slot))}})
      to->insert(to->end(), from.begin(), from.end());
  }
  return all;
}

// Rows of a matrix, and zeros behind them.
Values Picked(const Values& x, const std::vector<int32_t>& rows,
              int64_t width) {
  Values picked;
  for (int32_t row : rows)
    picked.insert(picked.end(), x.begin() + row * width,
                  x.begin() + (row + 1) * width);
  picked.insert(picked.end(), kPadding * width, 0);
  return picked;
}

void ExpectEqualToOneRank(const Case& c, int ranks) {
  std::vector<int32_t> cu_seqlens = {0}, cu_halves = {0};
  int32_t longest = 0;
  for (int32_t chunk : c.chunks) {
    cu_seqlens.push_back(cu_seqlens.back() + 2 * ranks * chunk);
    cu_halves.push_back(cu_halves.back() + chunk);
    longest = std::max(longest, chunk);
  }
  const int64_t tokens = cu_seqlens.back();
  const Values qkv = RandomVector<double>(tokens * kWidth, 1);
  const Values dout = RandomVector<double>(tokens * kOutWidth, 2);
  const Both one = OneRank(c, cu_seqlens, qkv, dout);
  OnRanks(ranks, [&](Communicator& cp) {
    Allocator allocator;
    Tape tape;
    const Context ctx{.allocator = &allocator, .tape = &tape};
    const auto indices = [&](const std::vector<int32_t>& values) {
      return Tensor::From<int32_t>(
          allocator, {static_cast<int64_t>(values.size())}, values);
    };
    const std::vector<int32_t> rows =
        *ContextParallelRows(cu_seqlens, ranks, cp.rank());
    const int64_t padded = static_cast<int64_t>(rows.size()) + kPadding;
    Rotary rotary = Tables(allocator, c.dtype, 2 * ranks * longest);
    Packing packing;
    if (c.packed()) {
      std::vector<int32_t> positions;
      for (int32_t row : rows) {
        size_t b = 0;
        while (cu_seqlens[b + 1] <= row) ++b;
        positions.push_back(row - cu_seqlens[b]);
      }
      packing = {indices(cu_halves), indices(positions)};
    }
    const Var x = tape.Input(TensorOf(allocator, {padded, kWidth}, c.dtype,
                                      Picked(qkv, rows, kWidth)));
    const Var out = RingAttention(ctx, x, ShapeOf(c, c.chunks.size(), longest),
                                  cp, c.rotary ? &rotary : nullptr, packing);
    const Values got = ValuesOf(out.value);
    tape.Backward(ctx,
                  {{out.slot, TensorOf(allocator, {padded, kOutWidth}, c.dtype,
                                       Picked(dout, rows, kOutWidth))}});
    // Softmax and sums of values of order 1: some roundings.
    const double tolerance = c.dtype == DType::kFloat64 ? 1e-13 : 3e-6;
    const std::string what =
        absl::StrCat(Name(c.dtype), " causal ", c.causal, " ranks ", ranks,
                     " samples ", c.chunks.size(), " packed ", c.packed());
    EXPECT_LT(RelativeL2(got, Picked(one.out, rows, kOutWidth)), tolerance)
        << what;
    EXPECT_LT(RelativeL2(ValuesOf(tape.TakeGrad(x.slot)),
                         Picked(one.gradient, rows, kWidth)),
              tolerance)
        << what;
  });
}

TEST(RingAttention, EqualsOneRank) {
  for (int ranks : {1, 2, 3, 4})
    for (bool causal : {true, false})
      for (DType dtype : {DType::kFloat64, DType::kFloat32})
        ExpectEqualToOneRank({dtype, causal, true, {5, 5, 5}}, ranks);
  ExpectEqualToOneRank({.rotary = false, .chunks = {1}}, 4);
  // Longer than a tile of the float32 path.
  ExpectEqualToOneRank({.dtype = DType::kFloat32, .chunks = {70}}, 2);
}

TEST(RingAttention, PackedSamplesSeeThemselvesAlone) {
  for (int ranks : {1, 2, 4})
    for (bool causal : {true, false})
      for (DType dtype : {DType::kFloat64, DType::kFloat32})
        ExpectEqualToOneRank({dtype, causal, true, {3, 1, 6, 2}}, ranks);
  ExpectEqualToOneRank({.chunks = {3, 0, 2}}, 2);
}

TEST(ContextParallelRows, AreTwoHalvesOfZigZagChunks) {
  // Samples of 8 and 4 tokens over 2 ranks: chunks of 2 and of 1.
  using Rows = std::vector<int32_t>;
  EXPECT_EQ(*ContextParallelRows({0, 8, 12}, 2, 0), (Rows{0, 1, 8, 6, 7, 11}));
  EXPECT_EQ(*ContextParallelRows({0, 8, 12}, 2, 1), (Rows{2, 3, 9, 4, 5, 10}));
  EXPECT_EQ(ContextParallelRows({0, 8, 10}, 2, 0).status().message(),
            "sequence 1: 2 tokens, wanted a multiple of 4, twice "
            "context_parallel_size");
}

}  // namespace
}  // namespace mimo
