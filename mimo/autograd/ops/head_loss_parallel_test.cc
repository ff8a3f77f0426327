// The head's loss over the parts of a vocabulary so large that there are
// several chunks, the last of them short.
#include <cstdint>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "mimo/autograd/ops/collectives.h"
#include "mimo/autograd/ops/head_loss.h"
#include "mimo/nn/module.h"
#include "mimo/nn/parallel_testing.h"

namespace mimo {
namespace {

constexpr int64_t kTokens = 101, kHidden = 2, kVocab = (1 << 17) + 1;

class Head : public Module {
 public:
  explicit Head(BuildContext build)
      : Module(std::move(build)),
        weight(AddParameter("weight", {kVocab, kHidden}, {.std = 2},
                            {0, {this->build().PartOf(kVocab)}})) {}
  Parameter& weight;
};

struct Result {
  double loss;
  Values dx;  // of the rank's rows
};

Result Pass(Head& head, Allocator& allocator, const ParallelGroups& groups,
            bool known_gradient) {
  Tape tape;
  const Context ctx{.allocator = &allocator, .tape = &tape};
  std::vector<int32_t> labels(kTokens);
  for (int64_t t = 0; t < kTokens; ++t)
    labels[t] = t % 4 == 1 ? -1 : t * 7919 % kVocab;
  Var x = tape.Input(
      RandomTensor(allocator, {kTokens, kHidden}, DType::kFloat64, 1));
  const Var rows = SliceTokensGatherGrad(ctx, x, groups.tokens());
  const Tensor dloss = Tensor::From<double>(allocator, {1}, {0.5});
  const Var loss = HeadLoss(ctx, rows, head.weight,
                            Tensor::From<int32_t>(allocator, {kTokens}, labels),
                            known_gradient ? dloss : Tensor(), groups);
  tape.Backward(ctx, {{loss.slot, dloss}});
  return {loss.value.span<double>()[0], ValuesOf(tape.TakeGrad(x.slot))};
}

TEST(HeadLossOverRanks, ChunksOfAPartEqualTheWhole) {
  Allocator allocator;
  Head one({.allocator = &allocator, .dtype = DType::kFloat64, .seed = 3});
  const Result wanted = Pass(one, allocator, {}, true);
  const Values whole = ValuesOf(one.weight.Grad());
  for (int ranks : {2, 3}) {
    OnRanks(ranks, [&](Communicator& tp) {
      for (bool sequence_parallel : {false, true}) {
        const ParallelGroups groups = {.tp = &tp,
                                       .sequence_parallel = sequence_parallel};
        Allocator memory;
        Head head({.allocator = &memory,
                   .dtype = DType::kFloat64,
                   .seed = 3,
                   .parallel = groups});
        const Result got = Pass(head, memory, groups, sequence_parallel);
        // Sums of 2^17 terms of one sign: their roundings average out.
        EXPECT_NEAR(got.loss, wanted.loss, 1e-12 * wanted.loss);
        EXPECT_LT(RelativeL2(got.dx, wanted.dx), 1e-12);
        EXPECT_LT(RelativeL2(ValuesOf(head.weight.Grad()),
                             PartOfWhole(whole, head.weight)),
                  1e-12);
      }
    });
  }
}

}  // namespace
}  // namespace mimo
