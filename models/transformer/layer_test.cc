// Activation checkpointing of a transformer stack: the bytes kept, the runs
// made and the gradients.
#include "models/transformer/layer.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/testing/backend.h"
#include "mimo/autograd/profiler.h"

namespace mimo {
namespace {

constexpr int64_t kBatch = 2, kSeq = 32, kTokens = kBatch * kSeq;

// Sizes of which each tensor's bytes are a size class of the allocator.
TransformerConfig Config(bool gated) {
  return {.hidden_size = 128,
          .ffn_hidden_size = 192,
          .heads = 2,
          .kv_heads = gated ? 1 : 2,
          .head_dim = 64,
          .norm = gated ? NormKind::kRms : NormKind::kLayer,
          .norm_epsilon = 1e-5,
          .bias = !gated,
          .gated = gated,
          .activation = Activation::kQuickGelu,
          .causal = gated,
          .init_std = 0.2};
}

struct Result {
  int64_t kept;  // bytes, after the forward
  int64_t peak;  // bytes
  std::string trace;
  std::vector<std::vector<uint8_t>> gradients;  // of the input, parameters

  // How often the ranges of this name ran. Each is on two timelines.
  int Runs(const std::string& range) const {
    const std::string wanted = absl::StrCat("\"name\":\"", range, "\"");
    int found = 0;
    for (size_t at = trace.find(wanted); at != std::string::npos;
         at = trace.find(wanted, at + 1))
      ++found;
    return found / 2;
  }
};

std::vector<uint8_t> BytesOf(const Tensor& tensor) {
  Allocator host;
  const Tensor copy = tensor.Clone(host);
  const auto* bytes = static_cast<const uint8_t*>(copy.data());
  return {bytes, bytes + copy.bytes()};
}

class RecomputeTest : public BackendTest {
 protected:
  // Forward and backward of `layers` layers.
  Result Run(TransformerConfig config, int64_t layers, bool frozen,
             Recompute recompute,
             std::optional<int64_t> recompute_layers = std::nullopt) {
    Allocator allocator(StreamOf(backend()));
    config.recompute = recompute;
    config.recompute_layers = recompute_layers;
    const BuildContext root = {
        .allocator = &allocator, .dtype = backend().dtype, .seed = 3};
    TransformerStack stack(root.Child("layers"), config, layers);
    if (frozen) stack.Freeze();
    const Shape shape = {kTokens, config.hidden_size};
    const Tensor x = Fill(allocator, shape, 1), dy = Fill(allocator, shape, 2);
    Tape tape;
    Profiler profiler(allocator.stream());
    const Context ctx{
        .allocator = &allocator, .tape = &tape, .profiler = &profiler};
    const Var in = tape.Input(x);
    Result result;
    const int64_t before = allocator.live_bytes();
    Residual out =
        stack.Forward(ctx, {in, Var()}, {.batch = kBatch, .seq = kSeq}, layers);
    out.stream.value = Tensor();
    out.pending.value = Tensor();
    result.kept = allocator.live_bytes() - before;
    allocator.ResetPeak();
    tape.Backward(ctx, {{out.stream.slot, dy}, {out.pending.slot, dy}});
    result.peak = allocator.stats().peak_bytes;
    result.trace = profiler.Trace();
    result.gradients.push_back(BytesOf(tape.TakeGrad(in.slot)));
    for (Parameter* p : stack.Parameters())
      if (!p->frozen) result.gradients.push_back(BytesOf(p->Grad()));
    return result;
  }

  Tensor Fill(Allocator& allocator, const Shape& shape, uint32_t seed) {
    const std::vector<double> values = RandomValues(shape[0] * shape[1], seed);
    const Array array(backend(), values);
    const Tensor of(allocator, shape, backend().dtype);
    CopyBytes(of.data(), array.data(), of.bytes(), allocator.stream());
    Synchronize(allocator.stream());
    return of;
  }
};
MIMO_ON_BACKENDS(RecomputeTest);

TEST(LayersOfStage, AreThoseOnIt) {
  for (int64_t count : {1, 2, 3, 7, 32, 33}) {
    for (int stages = 1; stages <= count; ++stages) {
      int64_t next = 0;
      for (int stage = 0; stage < stages; ++stage) {
        const Shard part = LayersOfStage(count, stages, stage);
        EXPECT_EQ(part.begin, next);
        EXPECT_GE(part.size, 1);
        next += part.size;
        for (int64_t i = part.begin; i < next; ++i)
          EXPECT_EQ(StageOfLayer(i, count, stages), stage);
      }
      EXPECT_EQ(next, count);
    }
  }
}

TEST_P(RecomputeTest, KeepsTheBytesThatItsHeaderSays) {
  for (bool gated : {true, false}) {
    const TransformerConfig config = Config(gated);
    const LayerSizes sizes = {config.hidden_size, config.ffn_hidden_size,
                              config.heads,       config.kv_heads,
                              config.head_dim,    gated};
    for (bool frozen : {false, true}) {
      // A norm's statistics are 4 or 8 bytes a token, attention's 4 a head.
      const int64_t norm = gated ? 4 : 8, lse = 4 * config.heads;
      const std::vector<std::pair<Recompute, int64_t>> statistics = {
          {Recompute::kOff, 2 * norm + lse},
          {Recompute::kSelective, norm + lse},
          {Recompute::kFull, 0}};
      for (const auto& [recompute, more] : statistics) {
        const KeptElements kept = KeptByLayer(sizes, recompute, frozen);
        const int64_t bytes =
            (kept.whole + kept.split) * SizeOf(backend().dtype) + more;
        // What a third layer adds.
        EXPECT_EQ(Run(config, 3, frozen, recompute).kept -
                      Run(config, 2, frozen, recompute).kept,
                  bytes * kTokens)
            << "gated " << gated << " frozen " << frozen << " mode "
            << static_cast<int>(recompute);
      }
    }
  }
}

TEST_P(RecomputeTest, GradientsAreBitwiseTheSameAndThePeakFalls) {
  for (bool gated : {true, false}) {
    for (bool frozen : {false, true}) {
      const TransformerConfig config = Config(gated);
      const Result off = Run(config, 4, frozen, Recompute::kOff);
      const Result some = Run(config, 4, frozen, Recompute::kSelective);
      const Result full = Run(config, 4, frozen, Recompute::kFull);
      const Result half = Run(config, 4, frozen, Recompute::kFull, 2);
      const Result none = Run(config, 4, frozen, Recompute::kFull, 0);
      EXPECT_EQ(off.gradients, some.gradients);
      EXPECT_EQ(off.gradients, full.gradients);
      EXPECT_EQ(off.gradients, half.gradients);
      EXPECT_LT(some.peak, off.peak);
      EXPECT_LT(full.peak, some.peak);
      EXPECT_LT(half.kept, off.kept);
      EXPECT_GT(half.kept, full.kept);
      EXPECT_EQ(none.kept, off.kept);
      EXPECT_EQ(none.peak, off.peak);
    }
  }
}

TEST_P(RecomputeTest, RunsAgainWhatItSays) {
  const TransformerConfig config = Config(/*gated=*/true);
  const auto runs = [](const Result& result, int layer) {
    const std::string path = absl::StrCat("layers.", layer);
    return std::vector<int>{result.Runs(path + ".attention"),
                            result.Runs(path + ".mlp")};
  };
  using Counts = std::vector<int>;
  const Result off = Run(config, 2, false, Recompute::kOff);
  EXPECT_EQ(runs(off, 0), (Counts{1, 1}));
  EXPECT_EQ(off.Runs("recompute"), 0);
  const Result some = Run(config, 2, false, Recompute::kSelective);
  EXPECT_EQ(runs(some, 0), (Counts{1, 2}));
  const Result full = Run(config, 2, false, Recompute::kFull, 1);
  EXPECT_EQ(runs(full, 0), (Counts{2, 2}));
  EXPECT_EQ(runs(full, 1), (Counts{1, 1}));
  EXPECT_EQ(full.Runs("recompute"), 1);
}

}  // namespace
}  // namespace mimo
