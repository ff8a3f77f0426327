// The language model over tp and cp ranks is the one of one rank: loss and
// every gradient, to rounding.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "mimo/autograd/ops/embedding.h"
#include "mimo/autograd/ops/ring_attention.h"
#include "mimo/nn/parallel_testing.h"
#include "mimo/nn/tensor_parallel_grads.h"
#include "models/gpt/gpt.h"

namespace mimo {
namespace {

// Three samples of seven tokens: neither 2 nor 4 ranks divide them evenly. The
// vocabulary and F are uneven too.
constexpr int64_t kVocab = 13, kHidden = 12;

struct Case {
  DType dtype = DType::kFloat64;
  int64_t groups = 2;
  bool tied = false;
  bool frozen = false;
  bool labelled_only = true;
  bool known_gradient = true;
  Recompute recompute = Recompute::kOff;
  std::vector<int32_t> lengths = {7, 7, 7};  // of samples; unequal: packed

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
        groups(groups),
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

  // Sums what the cp ranks have a part of each.
  void SumOverCp(const Tensor& x) {
    if (groups.cp != nullptr)
      groups.cp->AllReduce(x.data(), x.data(), x.numel(), x.dtype(),
                           ReduceOp::kSum, Stream());
  }

  // Loss and gradients of a batch. Of unequal samples one rank runs each alone,
  // which is what packing must equal; several ranks run them packed.
  void Step() {
    loss = 0;
    const int64_t total = std::reduce(c.lengths.begin(), c.lengths.end());
    placed_gradient.assign((total + 3) / 6 * kHidden, 0);
    const int samples = c.lengths.size();
    const bool equal =
        std::set<int32_t>(c.lengths.begin(), c.lengths.end()).size() == 1;
    if (equal || groups.tp != nullptr) {
      Pass(0, samples, !equal);
    } else {
      for (int b = 0; b < samples; ++b) Pass(b, b + 1, false);
    }
    for (Parameter* p : model.Parameters())
      if (!p->frozen) SumOverCp(p->Grad());
    if (groups.tp != nullptr)
      SumGradsOverTp({.allocator = &allocator}, model.Parameters(), *groups.tp);
  }

  // Samples [begin, end).
  void Pass(int begin, int end, bool packed) {
    Tape tape;
    const Context ctx{.allocator = &allocator, .tape = &tape};
    const int cp = groups.cp_size();
    std::vector<int32_t> cu_seqlens = {0}, cu_halves = {0};
    for (int b = begin; b < end; ++b) {
      cu_seqlens.push_back(cu_seqlens.back() + c.lengths[b]);
      cu_halves.push_back(cu_halves.back() + c.lengths[b] / (2 * cp));
    }
    std::vector<int32_t> rows(cu_seqlens.back());
    std::iota(rows.begin(), rows.end(), 0);
    if (cp > 1) rows = *ContextParallelRows(cu_seqlens, cp, groups.cp_rank());
    // Of the whole batch, some tokens' embeddings are placed, some have a
    // label.
    const std::set<int32_t> labelled = {0, 6, 7, 15, 20};
    const int32_t first =
        std::reduce(c.lengths.begin(), c.lengths.begin() + begin);
    std::vector<int32_t> ids, positions, placed_rows, placed_at, wanted,
        targets;
    for (int32_t row : rows) {
      const int32_t here = ids.size(), t = first + row;
      const auto next =
          std::upper_bound(cu_seqlens.begin(), cu_seqlens.end(), row);
      positions.push_back(row - *(next - 1));
      ids.push_back(t % 6 == 2 ? -1 : t * 5 % kVocab);
      if (t % 6 == 2) {
        placed_rows.push_back(t / 6);
        placed_at.push_back(here);
      }
      if (labelled.contains(t)) wanted.push_back(here);
      if (labelled.contains(t) || !c.labelled_only)
        targets.push_back(labelled.contains(t) ? t * 3 % kVocab : -1);
    }
    Packing packing;
    if (packed)
      packing = {Indices(cp > 1 ? cu_halves : cu_seqlens), Indices(positions)};
    const int64_t seq =
        *std::max_element(c.lengths.begin() + begin, c.lengths.begin() + end) /
        cp;
    const Var placed = tape.Input(RandomTensor(
        allocator,
        {static_cast<int64_t>(placed_gradient.size()) / kHidden, kHidden},
        c.dtype, 1));
    const Var embeddings = model.Embed(
        ctx, Indices(ids),
        {{SelectRows(ctx, placed, Indices(placed_rows)), Indices(placed_at)}});
    const Var hidden =
        model.Forward(ctx, embeddings, end - begin, seq, nullptr, 0,
                      c.labelled_only ? Indices(wanted) : Tensor(), packing);
    const Tensor dloss = Tensor::From<double>(allocator, {1}, {0.25});
    const Var sum = model.Loss(ctx, hidden, Indices(targets),
                               c.known_gradient ? dloss : Tensor());
    tape.Backward(ctx, {{sum.slot, dloss}});
    SumOverCp(sum.value);
    loss += sum.value.span<double>()[0];
    const Tensor dplaced = tape.TakeGrad(placed.slot);
    SumOverCp(dplaced);
    const Values part = ValuesOf(dplaced);
    for (size_t i = 0; i < part.size(); ++i) placed_gradient[i] += part[i];
  }

  const Case c;
  const ParallelGroups groups;
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

// One step on `tp` x `cp` ranks.
void ExpectEqualToOneRank(const Case& c, const std::vector<int>& tp_sizes,
                          int cp_size = 1) {
  Trial one(c, {});
  one.Step();
  const auto whole = GradientsOf(one.model.Parameters());
  for (int tp_size : tp_sizes) {
    for (bool sequence_parallel : {false, true}) {
      OnRanks(tp_size * cp_size, [&](Communicator& world) {
        std::vector<std::vector<int>> tps(cp_size), cps(tp_size);
        for (int rank = 0; rank < world.size(); ++rank) {
          tps[rank / tp_size].push_back(rank);
          cps[rank % tp_size].push_back(rank);
        }
        const auto tp = *world.Split("tp", tps), cp = *world.Split("cp", cps);
        Trial trial(c, {.tp = tp.get(),
                        .cp = cp_size > 1 ? cp.get() : nullptr,
                        .sequence_parallel = sequence_parallel});
        trial.Step();
        const std::string what =
            absl::StrCat(c.ToString(), " tp ", tp_size, " cp ", cp_size, " sp ",
                         sequence_parallel);
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
          cached, Tensor(), {});
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

// Some ranks have no labelled token.
TEST(GptContextParallel, EqualsOneRank) {
  for (DType dtype : {DType::kFloat64, DType::kFloat32}) {
    ExpectEqualToOneRank({.dtype = dtype, .lengths = {16, 16, 16}}, {1}, 2);
    ExpectEqualToOneRank({.dtype = dtype, .lengths = {16, 16, 16}}, {1}, 4);
    ExpectEqualToOneRank({.dtype = dtype, .lengths = {16, 16, 16}}, {2, 3}, 2);
  }
}

TEST(GptContextParallel, AllRowsFrozenAndRecomputed) {
  ExpectEqualToOneRank({.labelled_only = false, .lengths = {8, 8, 8}}, {1, 2},
                       2);
  for (bool frozen : {false, true})
    for (Recompute recompute : {Recompute::kSelective, Recompute::kFull})
      ExpectEqualToOneRank(
          {.frozen = frozen, .recompute = recompute, .lengths = {8, 8, 8}},
          {1, 2}, 2);
}

// Over one rank, too, samples see themselves alone.
TEST(GptContextParallel, PackedSamplesEqualEachAlone) {
  for (DType dtype : {DType::kFloat64, DType::kFloat32}) {
    const Case c = {.dtype = dtype, .lengths = {8, 4, 16, 4}};
    ExpectEqualToOneRank(c, {1, 2, 3});
    ExpectEqualToOneRank(c, {1, 2}, 2);
  }
  ExpectEqualToOneRank(
      {.recompute = Recompute::kFull, .lengths = {8, 4, 16, 4}}, {2}, 2);
}

TEST(GptTensorParallel, ARankThatFailsEndsTheStepOfAll) {
  for (bool sequence_parallel : {false, true}) {
    const std::vector<absl::Status> statuses =
        RunRanks(3, [&](Communicator& tp) -> absl::Status {
          if (tp.rank() == 1) return absl::NotFoundError("no such file");
          Trial trial({}, {.tp = &tp, .sequence_parallel = sequence_parallel});
          trial.Step();
          return absl::OkStatus();
        });
    for (int rank : {0, 2})
      EXPECT_EQ(statuses[rank],
                absl::NotFoundError("rank 1 failed: no such file"));
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
