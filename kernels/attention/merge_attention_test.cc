#include "kernels/attention/merge_attention.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;
constexpr int64_t kHeads = 3;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

class MergeAttentionTest : public BackendTest {};
MIMO_ON_BACKENDS(MergeAttentionTest);

struct Part {
  Values out, lse;
};

// Random parts; every fourth query of part `blind` sees no key.
Part RandomPart(int64_t values, int64_t statistics, uint32_t seed, bool blind) {
  Part part = {RandomValues(values, seed),
               RandomValues(statistics, seed + 100, 3)};
  for (int64_t i = 0; blind && i < statistics; i += 4) part.lse[i] = -kInfinity;
  return part;
}

Part Merged(const Backend& on, const std::vector<Part>& parts, int64_t dim,
            int64_t batch, int64_t seq, const Values& cu_seqlens) {
  const DType sums = AccumulatorOf(on.dtype);
  const Array out =
      Array::Poisoned(on, sums, static_cast<int64_t>(parts[0].out.size()));
  const Array lse =
      Array::Poisoned(on, sums, static_cast<int64_t>(parts[0].lse.size()));
  const Array lengths(on, DType::kInt32, cu_seqlens);
  bool first = true;
  for (const Part& part : parts) {
    const Array out_b(on, part.out), lse_b(on, sums, part.lse);
    MergeAttention(
        {.out = out.data(),
         .lse = lse.data(),
         .out_b = out_b.data(),
         .lse_b = lse_b.data(),
         .first = first,
         .batch = batch,
         .seq = seq,
         .heads = kHeads,
         .head_dim = dim,
         .cu_seqlens = cu_seqlens.empty()
                           ? nullptr
                           : static_cast<const int32_t*>(lengths.data()),
         .dtype = on.dtype},
        StreamOf(on));
    first = false;
  }
  return {out.Values(), lse.Values()};
}

// One sum over all parts. Each merge adds some roundings of an exponential
// near 1, each of three exponents 2 ulp of at most 6.
void ExpectIsTheFormula(const Backend& on, int64_t dim, int64_t batch,
                        int64_t seq, const Values& cu_seqlens) {
  const int64_t width = kHeads * dim;
  const int64_t tokens = cu_seqlens.empty()
                             ? batch * seq
                             : static_cast<int64_t>(cu_seqlens.back());
  std::vector<Part> parts;
  for (uint32_t p = 0; p < 4; ++p)
    parts.push_back(
        RandomPart(tokens * width, batch * kHeads * seq, p, p % 2 == 1));
  const Part got = Merged(on, parts, dim, batch, seq, cu_seqlens);
  const double error = on.dtype == DType::kFloat64 ? 1e-14 : 1e-5;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t first = cu_seqlens.empty() ? b * seq : cu_seqlens[b];
    const int64_t rows = cu_seqlens.empty() ? seq : cu_seqlens[b + 1] - first;
    for (int64_t n = 0; n < kHeads; ++n) {
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = (b * kHeads + n) * seq + i;
        double sum = 0;
        for (const Part& part : parts) sum += std::exp(part.lse[at]);
        EXPECT_NEAR(got.lse[at], std::log(sum), error);
        for (int64_t d = 0; d < dim; ++d) {
          const int64_t column = (first + i) * width + n * dim + d;
          double wanted = 0;
          for (const Part& part : parts)
            wanted += std::exp(part.lse[at]) / sum * part.out[column];
          EXPECT_NEAR(got.out[column], wanted, error);
        }
      }
    }
  }
}

TEST_P(MergeAttentionTest, IsTheFormula) {
  for (const int64_t dim : {5, 8, 128}) {  // 16 bytes at once, or one element
    for (auto [batch, seq] :
         {std::pair<int64_t, int64_t>{1, 1}, {2, 7}, {3, 64}, {0, 4}, {2, 0}})
      ExpectIsTheFormula(backend(), dim, batch, seq, {});
    ExpectIsTheFormula(backend(), dim, 4, 9, {0, 9, 9, 12, 13});
  }
}

TEST_P(MergeAttentionTest, AQueryThatNoPartLetsSeeStaysBlind) {
  for (const int64_t dim : {5, 8}) {
    const Part blind = {Values(kHeads * dim, 0), Values(kHeads, -kInfinity)};
    const Part got = Merged(backend(), {blind, blind}, dim, 1, 1, {});
    EXPECT_EQ(got.out, blind.out);
    EXPECT_EQ(got.lse, blind.lse);
  }
}

}  // namespace
}  // namespace mimo::kernels
