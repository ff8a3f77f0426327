// The language model over tp ranks is the one of one rank: loss and every
// gradient, to rounding.
#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/autograd/ops/embedding.h"
#include "mimo/nn/parallel_testing.h"
#include "mimo/nn/tensor_parallel_grads.h"
#include "models/gpt/gpt.h"

namespace mimo {
namespace {

// Three samples of seven tokens: neither 2 nor 4 ranks divide them evenly. The
// vocabulary and F are uneven too.
constexpr int64_t kBatch = 3, kSeq = 7, kTokens = kBatch * kSeq, kVocab = 13;
constexpr int64_t kHidden = 12;
constexpr int64_t kPlaced = 4, kLabelled = 5;

struct Case {
  DType dtype = DType::kFloat64;
  int64_t groups = 2;
  bool tied = false;
  bool frozen = false;
  bool labelled_only = true;
  bool known_gradient = true;
  Recompute recompute = Recompute::kOff;

  std::string ToString() const {
    return absl::StrCat(Name(dtype), " groups ", groups, " tied ", tied,
                        " frozen ", frozen, " labelled_only ", labelled_only,
                        " known_gradient ", known_gradient, " recompute ",
                        static_cast<int>(recompute));
  }
};

GptConfig Config(const Case& c) {
  return {.num_layers = 2,
          .hidden_size = kHidden,
          .ffn_hidden_size = 10,
          .num_attention_heads = 6,
          .num_query_groups = c.groups,
          .kv_channels = 4,
          .vocab_size = kVocab,
          .max_sequence_length = 16,
          .tie_word_embeddings = c.tied,
          .init_std = 0.3,
          .recompute = c.recompute};
}

// A model on one rank or on some, and a step of it.
struct Trial {
  Trial(const Case& c, const ParallelGroups& groups)
      : c(c),
        model({.allocator = &allocator,
               .dtype = c.dtype,
               .seed = 5,
               .parallel = groups},
              Config(c)) {
    if (c.frozen) model.Freeze();
  }

  Tensor Indices(const std::vector<int32_t>& values) {
    return Tensor::From<int32_t>(allocator,
                                 {static_cast<int64_t>(values.size())}, values);
  }

  // Loss and gradients of a batch.
  void Step() {
    Tape tape;
    const Context ctx{.allocator = &allocator, .tape = &tape};
    std::vector<int32_t> ids(kTokens), positions, targets;
    for (int64_t t = 0; t < kTokens; ++t) {
      ids[t] = t * 5 % kVocab;
      if (t % 6 == 2) {
        ids[t] = -1;
        positions.push_back(t);
      }
    }
    const std::vector<int32_t> rows = {0, 6, 7, 15, 20};
    for (int64_t t = 0; t < kTokens; ++t)
      if (std::find(rows.begin(), rows.end(), t) != rows.end())
        targets.push_back(t * 3 % kVocab);
      else if (!c.labelled_only)
        targets.push_back(-1);
    const Var placed =
        tape.Input(RandomTensor(allocator, {kPlaced, kHidden}, c.dtype, 1));
    const Var embeddings =
        model.Embed(ctx, Indices(ids), {{placed, Indices(positions)}});
    const Var hidden =
        model.Forward(ctx, embeddings, kBatch, kSeq, nullptr, 0,
                      c.labelled_only ? Indices(rows) : Tensor());
    const Tensor dloss = Tensor::From<double>(allocator, {1}, {0.25});
    const Var sum = model.Loss(ctx, hidden, Indices(targets),
                               c.known_gradient ? dloss : Tensor());
    loss = sum.value.span<double>()[0];
    tape.Backward(ctx, {{sum.slot, dloss}});
    placed_gradient = ValuesOf(tape.TakeGrad(placed.slot));
  }

  const Case c;
  Allocator allocator;
  GptModel model;
  double loss;
  Values placed_gradient;
};

// 21 tokens, two layers and a loss of order 1: some tens of roundings of
// values of order 1 reach each gradient.
double Tolerance(DType dtype) {
  return dtype == DType::kFloat64 ? 1e-12 : 1e-5;
}

void ExpectEqualToOneRank(const Case& c, std::vector<int> sizes) {
  Trial one(c, {});
  one.Step();
  const auto whole = GradientsOf(one.model.Parameters());
  for (int size : sizes) {
    for (bool sequence_parallel : {false, true}) {
      OnRanks(size, [&](Communicator& tp) {
        Trial trial(c, {.tp = &tp, .sequence_parallel = sequence_parallel});
        trial.Step();
        SumGradsOverTp({.allocator = &trial.allocator},
                       trial.model.Parameters(), tp);
        const std::string what =
            absl::StrCat(c.ToString(), " tp ", size, " sp ", sequence_parallel);
        EXPECT_NEAR(trial.loss, one.loss, Tolerance(c.dtype) * one.loss)
            << what;
        EXPECT_LT(RelativeL2(trial.placed_gradient, one.placed_gradient),
                  Tolerance(c.dtype))
            << what;
        ExpectPartsOf(whole, trial.model.Parameters(), Tolerance(c.dtype),
                      what);
      });
    }
  }
}

TEST(GptTensorParallel, EqualsOneRank) {
  ExpectEqualToOneRank({}, {1, 2, 3, 4});
  ExpectEqualToOneRank({.dtype = DType::kFloat32}, {2, 3, 4});
}

// From all ranks sharing one key/value head to as many as query heads.
TEST(GptTensorParallel, MoreRanksThanKeyValueHeads) {
  for (int64_t groups : {1, 3, 6})
    ExpectEqualToOneRank({.groups = groups}, {2, 4, 6});
}

TEST(GptTensorParallel, TiedEmbeddingsAllRowsAndALateGradient) {
  ExpectEqualToOneRank({.tied = true}, {2, 4});
  ExpectEqualToOneRank({.labelled_only = false}, {2, 4});
  ExpectEqualToOneRank({.known_gradient = false}, {2, 4});
}

TEST(GptTensorParallel, FrozenAndRecomputed) {
  for (bool frozen : {false, true})
    for (Recompute recompute :
         {Recompute::kOff, Recompute::kSelective, Recompute::kFull})
      ExpectEqualToOneRank({.frozen = frozen, .recompute = recompute}, {2, 4});
}

// Steps of gradient descent: what several ranks have keeps the same bits, and
// the ranks stay together with the one.
TEST(GptTensorParallel, CopiesStayBitwiseEqual) {
  const Case c = {.dtype = DType::kFloat32, .groups = 2};
  const auto descend = [](Trial& trial) {
    for (Parameter* p : trial.model.Parameters()) {
      const auto data = p->data.span<float>();
      const auto grad = p->Grad().span<float>();
      for (size_t i = 0; i < data.size(); ++i) data[i] -= 0.1f * grad[i];
      p->ForgetGrad();
    }
  };
  Trial one(c, {});
  std::vector<double> losses;
  for (int step = 0; step < 10; ++step) {
    one.Step();
    losses.push_back(one.loss);
    descend(one);
  }
  EXPECT_LT(losses.back(), 0.5 * losses.front());
  OnRanks(4, [&](Communicator& tp) {
    Trial trial(c, {.tp = &tp, .sequence_parallel = true});
    for (double loss : losses) {
      trial.Step();
      // Ten steps let a rounding grow.
      EXPECT_NEAR(trial.loss, loss, 1e-4 * loss);
      SumGradsOverTp({.allocator = &trial.allocator}, trial.model.Parameters(),
                     tp);
      descend(trial);
    }
    int64_t compared = 0;
    for (Parameter* p : trial.model.Parameters()) {
      const int64_t bytes = p->data.bytes() / p->data.dim(p->sharding.dim);
      int64_t at = 0;
      for (const Shard& shard : p->sharding.shards) {
        if (shard.copies > 1) {
          std::vector<float> copies(4 * shard.size * bytes / 4);
          const auto rows = p->data.Rows(at, at + shard.size);
          tp.AllGather(rows.data(), copies.data(), rows.numel(),
                       DType::kFloat32, Stream());
          const auto first = copies.begin();
          const auto mine = first + tp.rank() * rows.numel();
          const auto other = first + (tp.rank() - shard.copy) * rows.numel();
          EXPECT_TRUE(std::equal(mine, mine + rows.numel(), other)) << p->name;
          ++compared;
        }
        at += shard.size;
      }
    }
    EXPECT_EQ(compared, 5 + 2 * 2);  // norms; keys and values of two layers
  });
}

TEST(GptTensorParallel, GenerationEqualsOneRank) {
  const Case c;
  const auto generate = [](Trial& trial) {
    const Context ctx{.allocator = &trial.allocator};
    std::vector<KvCache> caches = trial.model.MakeCaches(ctx, 1, 8);
    Values logits;
    int64_t cached = 0;
    for (const std::vector<int32_t>& ids :
         {std::vector<int32_t>{1, 5, 12}, {7}, {0}}) {
      const int64_t seq = ids.size();
      const Var hidden = trial.model.Forward(
          ctx, trial.model.Embed(ctx, trial.Indices(ids), {}), 1, seq, &caches,
          cached, Tensor());
      const Values step = ValuesOf(trial.model.Logits(ctx, hidden.value));
      logits.insert(logits.end(), step.begin(), step.end());
      cached += seq;
    }
    return logits;
  };
  Trial one(c, {});
  const Values wanted = generate(one);
  for (int size : {2, 4}) {
    for (bool sequence_parallel : {false, true}) {
      OnRanks(size, [&](Communicator& tp) {
        Trial trial(c, {.tp = &tp, .sequence_parallel = sequence_parallel});
        EXPECT_LT(RelativeL2(generate(trial), wanted), 1e-12);
      });
    }
  }
}

TEST(GptTensorParallel, ErrorsNameTheSizeThatIsTooSmall) {
  GptConfig config = Config({});
  EXPECT_TRUE(config.CheckTensorParallel(6).ok());
  EXPECT_EQ(config.CheckTensorParallel(7).message(),
            "tensor_model_parallel_size: 7, wanted a head for each rank of 6 "
            "num_attention_heads in 2 groups");
  config.vocab_size = 3;
  EXPECT_EQ(config.CheckTensorParallel(4).message(),
            "vocab_size: 3, wanted at least tensor_model_parallel_size 4");
}

}  // namespace
}  // namespace mimo
