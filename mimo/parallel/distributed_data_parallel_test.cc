#include "mimo/parallel/distributed_data_parallel.h"

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/checkpoint.h"
#include "mimo/autograd/tape.h"
#include "mimo/nn/layers.h"
#include "mimo/optim/adamw.h"

namespace mimo {
namespace {

using Values = std::vector<float>;

constexpr int64_t kTokens = 3, kIn = 5, kHidden = 23;

Values ValuesOf(const Tensor& tensor) {
  const auto span = tensor.span<float>();
  return Values(span.begin(), span.end());
}

// images (an encoder) -> language (two layers of one tied weight, a checkpoint,
// a frozen one).
struct Model : Module {
  explicit Model(BuildContext build)
      : Module(build),
        language(AddChild<Part>("language")),
        images(AddChild<Part>("images")) {}
  struct Part : Module {
    using Module::AddChild;
    using Module::Module;
  };

  Part& language;
  Part& images;
  LinearLayer& tied = language.AddChild<LinearLayer>("tied", kHidden, kHidden,
                                                     /*bias=*/false, 0.3);
  LinearLayer& inner = language.AddChild<LinearLayer>("inner", kHidden, kHidden,
                                                      /*bias=*/true, 0.3);
  LinearLayer& fixed = language.AddChild<LinearLayer>("fixed", kHidden, kHidden,
                                                      /*bias=*/true, 0.3);
  NormLayer& norm =
      language.AddChild<NormLayer>("norm", NormKind::kRms, kHidden, 1e-5);
  LinearLayer& encoder = images.AddChild<LinearLayer>("encoder", kIn, kHidden,
                                                      /*bias=*/true, 0.3);

  // Writes the gradient of a micro-batch, module by module; without an image
  // the encoder gets none.
  using Around = std::function<void(const char* module,
                                    const std::function<void()>& backward)>;
  void Backward(
      Allocator& allocator, std::mt19937& rng, bool image,
      const Around& around = [](const char*, const auto& run) { run(); }) {
    const auto random = [&](int64_t columns) {
      Tensor x(allocator, {kTokens, columns}, DType::kFloat32);
      for (float& v : x.span<float>())
        v = std::normal_distribution<float>()(rng);
      return x;
    };
    Tape images, tape;
    const Context of_images{.allocator = &allocator, .tape = &images};
    const Context ctx{.allocator = &allocator, .tape = &tape};
    const Tensor pixels = random(kIn), text = random(kHidden);
    Var encoded, in = {text};
    if (image) {
      encoded = encoder.Forward(of_images, {pixels});
      in = tape.Input(encoded.value);
    }
    Var x = in;
    x = norm.Forward(ctx, tied.Forward(ctx, x)).normalized;
    x = Checkpoint(ctx, {x}, inner.Parameters(),
                   [&](const Context& c, const std::vector<Var>& in) {
                     return std::vector<Var>{inner.Forward(c, in[0])};
                   })[0];
    x = tied.Forward(ctx, fixed.Forward(ctx, x));
    around("language", [&] {
      tape.Backward(ctx, {{x.slot, random(kHidden)}});
    });
    around("images", [&] {
      if (image)
        images.Backward(of_images, {{encoded.slot, tape.TakeGrad(in.slot)}});
    });
  }
};

// A rank's model and its groups: language over all ranks, images over pairs.
struct Rank {
  explicit Rank(Communicator& world) : world(world) {
    std::vector<std::vector<int>> pairs;
    for (int r = 0; r < world.size(); r += 2) pairs.push_back({r, r + 1});
    pair = *world.Split("images/dp", pairs);
    model.fixed.Freeze();
  }
  std::vector<DataParallelModule> Modules() {
    return {{"language", model.language.Parameters(), &world},
            {"images", model.images.Parameters(), pair.get()}};
  }
  // The gradients of a step of two micro-batches on rank `rank`; how many
  // reductions came before the ends of the backwards.
  int64_t Step(int rank, int step,
               DistributedDataParallel* parallel = nullptr) {
    std::mt19937 rng(100 * step + rank);
    model.Backward(allocator, rng, /*image=*/rank % 2 == 0);
    int64_t during = 0;
    model.Backward(allocator, rng, /*image=*/rank != 2,
                   [&](const char* module, const auto& backward) {
                     if (parallel == nullptr) return backward();
                     parallel->BeginLastBackward(module);
                     during -= Reductions();
                     backward();
                     during += Reductions();
                     parallel->EndLastBackward();
                   });
    return during;
  }
  void ForgetGrads() {
    for (Parameter* p : model.Parameters()) p->ForgetGrad();
  }
  int64_t Reductions() const {
    return world.LastOperations().size() + pair->LastOperations().size();
  }

  Communicator& world;
  std::unique_ptr<Communicator> pair;
  Allocator allocator;
  Model model{{.allocator = &allocator, .seed = 3}};
};

// Each parameter's gradient after `ranks` have stepped, summed in rank order.
std::map<std::string, Values> GradientSums(Rank& plain, int step,
                                           const std::vector<int>& ranks) {
  std::map<std::string, Values> sums;
  for (int rank : ranks) {
    plain.Step(rank, step);
    for (Parameter* p : plain.model.Parameters()) {
      if (p->frozen) continue;
      Values& sum = sums[p->name];
      const Values grad = ValuesOf(p->Grad());
      if (sum.empty()) sum.assign(grad.size(), 0);
      for (size_t i = 0; i < grad.size(); ++i)
        sum[i] = rank == ranks[0] ? grad[i] : sum[i] + grad[i];
    }
    plain.ForgetGrads();
  }
  return sums;
}

std::vector<int> MembersOf(const Communicator& group) {
  return {group.members().begin(), group.members().end()};
}

void ExpectOk(const std::vector<absl::Status>& statuses) {
  for (const absl::Status& status : statuses)
    EXPECT_TRUE(status.ok()) << status;
}

// Every shard is the sum of its replicas' gradients, bit for bit; shards of all
// replicas are the whole parameter; with overlap everything was reduced during
// the backward, or at its end without an image.
TEST(DistributedDataParallel, ShardsAreSumsOverTheReplicas) {
  for (const int ranks : {2, 4}) {
    for (const int64_t bucket_size : {1, 600, 1 << 20}) {
      for (const bool overlap : {true, false}) {
        ExpectOk(RunRanks(ranks, [&](Communicator& world) {
          Rank rank(world), plain(world);
          DistributedDataParallel parallel(
              rank.Modules(), rank.allocator,
              {.bucket_size = bucket_size, .overlap_grad_reduce = overlap});
          for (int step = 0; step < 2; ++step) {
            const int64_t before = rank.Reductions();
            const int64_t during = rank.Step(world.rank(), step, &parallel);
            const int64_t behind = rank.Reductions() - before;
            parallel.FinishGradSync();
            const int64_t all = rank.Reductions() - before;
            EXPECT_EQ(all, bucket_size == 1 ? 6 : bucket_size == 600 ? 3 : 2);
            EXPECT_EQ(behind, overlap ? all : 0);
            // Rank 2's last micro-batch has no image.
            const int64_t later = world.rank() != 2  ? 0
                                  : bucket_size == 1 ? 2
                                                     : 1;
            EXPECT_EQ(during, overlap ? all - later : 0);
            std::vector<DataParallelModule> modules = rank.Modules();
            for (int m = 0; m < 2; ++m) {
              const auto sums =
                  GradientSums(plain, step, MembersOf(*modules[m].group));
              Tensor covered(rank.allocator, {1}, DType::kInt64);
              int64_t size = 0;
              for (const ParameterShard& shard : parallel.shards(m)) {
                const Values grad = ValuesOf(shard.parameter->main_grad);
                const Values& sum = sums.at(shard.parameter->name);
                for (int64_t i = shard.begin; i < shard.end; ++i)
                  EXPECT_EQ(grad[i], sum[i]) << shard.parameter->name;
                size += shard.end - shard.begin;
              }
              int64_t wanted = 0;
              for (const Parameter* p : modules[m].parameters)
                if (!p->frozen) wanted += p->data.numel();
              modules[m].group->AllReduce(&size, &size, 1, DType::kInt64,
                                          ReduceOp::kSum, Stream());
              EXPECT_EQ(size, wanted);
            }
            rank.ForgetGrads();
          }
          return parallel.Health();
        }));
      }
    }
  }
}

// ZeRO-1 and AdamW on whole parameters make the same bits of the same
// gradients; so do replicas.
TEST(DistributedDataParallel, ShardedAndWholeUpdatesAreBitwiseEqual) {
  OptimizerConfig config;
  config.weight_decay = 0.1;
  config.clip_grad = 0.5;
  ExpectOk(RunRanks(4, [&](Communicator& world) -> absl::Status {
    Rank rank(world), plain(world);
    DistributedDataParallel parallel(rank.Modules(), rank.allocator,
                                     {.bucket_size = 600});
    AdamW language(config, {{.shards = parallel.shards(0)}}, &world,
                   rank.allocator);
    AdamW whole(config, plain.model.language.Parameters(), plain.allocator);
    for (int step = 0; step < 5; ++step) {
      rank.Step(world.rank(), step, &parallel);
      parallel.FinishGradSync();
      language.Step(1e-2);
      parallel.GatherParameters();
      rank.ForgetGrads();
      const auto sums = GradientSums(plain, step, MembersOf(world));
      for (Parameter* p : plain.model.language.Parameters()) {
        if (p->frozen) continue;
        std::memcpy(p->main_grad.data(), sums.at(p->name).data(),
                    p->main_grad.bytes());
        p->NextBeta();
      }
      whole.Step(1e-2);
      plain.ForgetGrads();
      // In another order, in double.
      EXPECT_NEAR(language.norm(), whole.norm(), 1e-13 * whole.norm());
      EXPECT_GT(whole.norm(), config.clip_grad);
      const auto ours = rank.model.language.Parameters();
      const auto theirs = plain.model.language.Parameters();
      for (size_t i = 0; i < ours.size(); ++i) {
        EXPECT_EQ(ValuesOf(ours[i]->data), ValuesOf(theirs[i]->data))
            << ours[i]->name << " after step " << step;
      }
      for (const auto& [name, slice] : language.State()) {
        const Values all = ValuesOf(whole.State().at(name).data);
        const Values own = ValuesOf(slice.data);
        for (size_t i = 0; i < own.size(); ++i)
          EXPECT_EQ(own[i], all[slice.begin + i]) << name;
      }
      MIMO_RETURN_IF_ERROR(parallel.CheckReplicas());
    }
    return absl::OkStatus();
  }));
}

// What the next forward reads first comes first: the last bucket reduced.
TEST(DistributedDataParallel, BucketsAreGatheredFromTheFirstLayerOn) {
  ExpectOk(RunRanks(2, [](Communicator& world) {
    Rank rank(world);
    DistributedDataParallel parallel({rank.Modules()[0]}, rank.allocator,
                                     {.bucket_size = 1});
    rank.Step(world.rank(), 0);
    parallel.FinishGradSync();
    parallel.GatherParameters();
    std::map<int, std::vector<int64_t>> counts;
    for (const Operation& operation : world.LastOperations())
      counts[operation.kind].push_back(operation.count);
    const std::vector<int64_t>& reduced = counts[Operation::kReduceScatter];
    EXPECT_EQ(reduced.size(), 4u);
    EXPECT_NE(reduced.front(), reduced.back());
    EXPECT_EQ(counts[Operation::kAllGather],
              std::vector<int64_t>(reduced.rbegin(), reduced.rend()));
    return parallel.Health();
  }));
}

TEST(DistributedDataParallel, OneReplicaIsLeftAlone) {
  ExpectOk(RunRanks(1, [](Communicator& world) {
    Allocator allocator;
    Model model{{.allocator = &allocator, .seed = 3}};
    model.fixed.Freeze();
    const void* data = model.tied.weight().data.data();
    for (Communicator* group : {&world, static_cast<Communicator*>(nullptr)}) {
      DistributedDataParallel parallel(
          {{"language", model.language.Parameters(), group}}, allocator);
      EXPECT_EQ(model.tied.weight().data.data(), data);
      EXPECT_EQ(parallel.shards(0).size(), 4u);
      for (const ParameterShard& shard : parallel.shards(0))
        EXPECT_EQ(shard.end, shard.parameter->data.numel());
      parallel.BeginLastBackward("language");
      parallel.FinishGradSync();
      parallel.GatherParameters();
      EXPECT_TRUE(parallel.CheckReplicas().ok());
    }
    EXPECT_TRUE(world.LastOperations().empty());
    return absl::OkStatus();
  }));
}

TEST(DistributedDataParallel, AReplicaOfOtherBitsIsNamed) {
  for (const bool frozen : {false, true}) {
    const auto statuses = RunRanks(4, [&](Communicator& world) {
      Rank rank(world);
      DistributedDataParallel parallel(rank.Modules(), rank.allocator);
      EXPECT_TRUE(parallel.CheckReplicas().ok());
      Parameter& parameter =
          frozen ? rank.model.fixed.weight() : rank.model.encoder.weight();
      if (world.rank() == 3) parameter.data.span<float>()[1] *= 1.0000002f;
      const absl::Status status = parallel.CheckReplicas();
      EXPECT_EQ(status.ok(), !frozen && world.rank() < 2);
      if (!status.ok()) {
        EXPECT_TRUE(absl::StrContains(
            status.message(),
            absl::StrCat(parameter.name, ": replicas 0 and ", frozen ? 3 : 1,
                         " of group ", frozen ? "world" : "images/dp")))
            << status;
      }
      return absl::OkStatus();
    });
    ExpectOk(statuses);
  }
}

// A rank that ends fails the others' reductions; Health says so.
TEST(DistributedDataParallel, ADeadReplicaShowsInHealth) {
  const auto statuses = RunRanks(2, [](Communicator& world) -> absl::Status {
    Rank rank(world);
    DistributedDataParallel parallel(rank.Modules(), rank.allocator);
    if (world.rank() == 1) return absl::InternalError("gone");
    rank.Step(world.rank(), 0, &parallel);
    parallel.FinishGradSync();
    return parallel.Health();
  });
  EXPECT_TRUE(absl::StrContains(statuses[0].message(), "rank 1 failed: gone"))
      << statuses[0];
}

}  // namespace
}  // namespace mimo
