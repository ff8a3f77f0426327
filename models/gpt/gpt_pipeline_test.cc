// Training the language model over pipeline stages, replicas and tp ranks is
// training it on one rank: losses, norms and weights, to rounding; and the two
// stages that have a tied embedding keep the same bits.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/collectives.h"
#include "mimo/nn/parallel_testing.h"
#include "mimo/optim/adamw.h"
#include "mimo/parallel/distributed_data_parallel.h"
#include "models/gpt/gpt.h"

namespace mimo {
namespace {

// Samples of S tokens; neither 2 tp ranks nor 2 or 3 stages divide all sizes.
constexpr int64_t kSamples = 6, kSeq = 5, kVocab = 13, kHidden = 12;
constexpr int kSteps = 4;

struct Case {
  bool tied = true;
  int tp = 1, dp = 1, pp = 1;
  bool sequence_parallel = false;
  int64_t bucket_size = 300;  // some parameters
};

// One rank's: null groups are one rank.
struct Groups {
  ParallelGroups parallel;
  Communicator *dp = nullptr, *embd = nullptr, *world = nullptr;
};

class Trial {
 public:
  Trial(const Case& c, const Groups& groups)
      : groups_(groups),
        model_({.allocator = &allocator_,
                .dtype = DType::kFloat64,
                .seed = 5,
                .parallel = groups.parallel},
               {.num_layers = 3,
                .hidden_size = kHidden,
                .ffn_hidden_size = 10,
                .num_attention_heads = 3,
                .kv_channels = 4,
                .vocab_size = kVocab,
                .max_sequence_length = kSeq,
                .tie_word_embeddings = c.tied,
                .init_std = 0.3}) {
    parameters_ = model_.Parameters();
    parallel_.emplace(
        std::vector<DataParallelModule>{{.name = "language",
                                         .parameters = parameters_,
                                         .group = groups.dp,
                                         .tp = groups.parallel.tp,
                                         .embd = groups.embd}},
        allocator_, DataParallelOptions{.bucket_size = c.bucket_size});
    optimizer_.emplace(
        OptimizerConfig{.weight_decay = 0.1, .clip_grad = 0.5},
        std::vector<ParamGroup>{{.shards = parallel_->shards(0)}}, groups.world,
        allocator_);
  }

  // A step of this replica's samples; its part of the loss.
  double Step(int step) {
    const int replicas = groups_.dp == nullptr ? 1 : groups_.dp->size();
    const int64_t tokens = kSamples * kSeq / replicas;
    const int64_t first =
        groups_.dp == nullptr ? 0 : groups_.dp->rank() * tokens;
    std::vector<int32_t> ids, targets;
    for (int64_t t = first; t < first + tokens; ++t) {
      ids.push_back((t * t + 3 * step) % kVocab);
      targets.push_back(t % 4 == 0 ? -1 : (t * 7 + step) % kVocab);
    }
    Tape tape;
    const Context ctx{.allocator = &allocator_, .tape = &tape};
    const ParallelGroups& parallel = groups_.parallel;
    const auto indices = [&](const std::vector<int32_t>& values) {
      return Tensor::From<int32_t>(allocator_, {tokens}, values);
    };
    const auto exchange = [&](Transfer::Kind kind, const Tensor& x, int to) {
      parallel.pp->Exchange(
          {{{kind, x.data(), x.numel(), x.dtype(), parallel.pp_rank() + to}}},
          Stream());
      return x;
    };
    const auto receive = [&](int from) {
      return exchange(
          Transfer::kRecv,
          Tensor(allocator_, {TokensOfRank(tokens, parallel.tokens()), kHidden},
                 DType::kFloat64),
          from);
    };
    const Var in = parallel.IsFirstStage() ? model_.Embed(ctx, indices(ids), {})
                                           : tape.Input(receive(-1));
    Var out = model_.Forward(ctx, in, tokens / kSeq, kSeq, nullptr, 0, {}, {});
    double loss = 0;
    Tensor gradient;
    if (parallel.IsLastStage()) {
      gradient = Tensor::From<double>(allocator_, {1}, {0.25});
      out = model_.Loss(ctx, out, indices(targets), gradient);
      loss = out.value.span<double>()[0];
    } else {
      exchange(Transfer::kSend, out.value, 1);
      gradient = receive(1);
    }
    parallel_->BeginLastBackward("language");
    tape.Backward(ctx, {{out.slot, gradient}});
    parallel_->EndLastBackward();
    if (!parallel.IsFirstStage())
      exchange(Transfer::kSend, tape.TakeGrad(in.slot), -1);
    parallel_->FinishGradSync();
    optimizer_->Step(0.02);
    parallel_->GatherParameters();
    for (Parameter* p : parameters_) p->ForgetGrad();
    return loss;
  }

  const std::vector<Parameter*>& parameters() const { return parameters_; }
  const DistributedDataParallel& parallel() const { return *parallel_; }
  double norm() const { return optimizer_->norm(); }

 private:
  const Groups groups_;
  Allocator allocator_;
  GptModel model_;
  std::vector<Parameter*> parameters_;
  std::optional<DistributedDataParallel> parallel_;
  std::optional<AdamW> optimizer_;
};

void ExpectEqualToOneRank(const Case& c) {
  Trial one(c, {});
  std::vector<double> losses, norms;
  for (int step = 0; step < kSteps; ++step) {
    losses.push_back(one.Step(step));
    norms.push_back(one.norm());
  }
  std::map<std::string, Values> whole;
  for (const Parameter* p : one.parameters())
    whole[p->name] = ValuesOf(p->data);
  const auto run = [&](Communicator& world) -> absl::Status {
    // tp fastest, then dp, then pp.
    const int stage = c.tp * c.dp;
    std::vector<std::vector<int>> tps(c.dp * c.pp), dps(c.tp * c.pp),
        pps(stage), embds(stage);
    for (int rank = 0; rank < world.size(); ++rank) {
      tps[rank / c.tp].push_back(rank);
      dps[rank / stage * c.tp + rank % c.tp].push_back(rank);
      pps[rank % stage].push_back(rank);
    }
    for (int line = 0; line < stage; ++line) {
      embds[line] = {pps[line].front()};
      if (c.pp > 1) embds[line].push_back(pps[line].back());
    }
    MIMO_ASSIGN_OR_RETURN(const auto tp, world.Split("tp", tps));
    MIMO_ASSIGN_OR_RETURN(const auto dp, world.Split("dp", dps));
    MIMO_ASSIGN_OR_RETURN(const auto pp, world.Split("pp", pps));
    MIMO_ASSIGN_OR_RETURN(const auto embd, world.Split("embd", embds));
    Trial trial(c, {.parallel = {.tp = tp.get(),
                                 .pp = pp.get(),
                                 .sequence_parallel = c.sequence_parallel},
                    .dp = dp.get(),
                    .embd = embd.get(),
                    .world = &world});
    for (int step = 0; step < kSteps; ++step) {
      double loss = trial.Step(step) / c.tp;  // alike on all tp ranks
      world.AllReduce(&loss, &loss, 1, DType::kFloat64, ReduceOp::kSum,
                      Stream());
      EXPECT_NEAR(loss, losses[step], 1e-12 * losses[step]);
      EXPECT_NEAR(trial.norm(), norms[step], 1e-12 * norms[step]);
      MIMO_RETURN_IF_ERROR(trial.parallel().CheckReplicas());
    }
    int64_t copies = 0;
    for (const Parameter* p : trial.parameters()) {
      EXPECT_LT(
          RelativeL2(ValuesOf(p->data), PartOfWhole(whole.at(p->name), *p)),
          1e-12)
          << p->name;
      copies += p->stage_copies > 1;
    }
    const bool end = pp->rank() == 0 || pp->rank() + 1 == c.pp;
    EXPECT_EQ(copies, c.tied && c.pp > 1 && end);
    return trial.parallel().Health();
  };
  for (const absl::Status& status : RunRanks(c.tp * c.dp * c.pp, run))
    EXPECT_TRUE(status.ok())
        << status << " tp " << c.tp << " dp " << c.dp << " pp " << c.pp;
}

TEST(GptPipeline, TiedEmbeddings) {
  for (int pp : {2, 3}) {
    ExpectEqualToOneRank({.pp = pp});
    ExpectEqualToOneRank({.tp = 2, .pp = pp});
    ExpectEqualToOneRank({.dp = 2, .pp = pp});
    ExpectEqualToOneRank({.tp = 2, .dp = 2, .pp = pp});
  }
  ExpectEqualToOneRank({.tp = 2, .pp = 2, .sequence_parallel = true});
  // Replicas that cut the table unevenly; one bucket but for the table.
  ExpectEqualToOneRank({.dp = 3, .pp = 2});
  ExpectEqualToOneRank({.dp = 3, .pp = 2, .bucket_size = 1 << 20});
}

TEST(GptPipeline, NotTiedOrOneStage) {
  ExpectEqualToOneRank({.tied = false, .tp = 2, .dp = 2, .pp = 2});
  ExpectEqualToOneRank({.tied = false, .pp = 3, .sequence_parallel = true});
  ExpectEqualToOneRank({.dp = 2});
}

}  // namespace
}  // namespace mimo
