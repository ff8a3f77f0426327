// The vision transformer and the projector behind it over tp ranks and pipeline
// stages are those of one rank: features, projected rows and every gradient, to
// rounding.
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/base/planned_communicator.h"
#include "gtest/gtest.h"
#include "mimo/nn/parallel_testing.h"
#include "mimo/nn/tensor_parallel_grads.h"
#include "models/clip/clip_vit.h"
#include "models/projector/projector.h"

namespace mimo {
namespace {

struct Case {
  DType dtype = DType::kFloat64;
  bool frozen_encoder = false;
  bool frozen_projector = false;
  ProjectorType projector = ProjectorType::kMlp;
  Recompute recompute = Recompute::kOff;
  int64_t num_layers = 3;
  FeatureSelect select = FeatureSelect::kDefault;
};

// Five tokens an image: 2, 3 and 4 ranks share three images' unevenly.
constexpr int64_t kImages = 3;

ClipVitConfig Encoder(const Case& c) {
  return {.num_layers = c.num_layers,
          .hidden_size = 12,
          .ffn_hidden_size = 10,
          .num_attention_heads = 6,
          .image_size = 6,
          .patch_size = 3,
          .feature_select_strategy = c.select,
          .init_std = 0.3,
          .position_embedding_std = 0.5,
          .recompute = c.recompute};
}

ProjectorConfig Projector(const Case& c) {
  return {.type = c.projector,
          .input_size = 12,
          .ffn_hidden_size = 9,
          .output_size = 8,
          .init_std = 0.3};
}

struct Trial {
  Trial(const Case& c, const ParallelGroups& groups)
      : c(c),
        groups(groups),
        build({.allocator = &allocator,
               .dtype = c.dtype,
               .seed = 7,
               .parallel = groups}),
        encoder(build.Child("encoder"), Encoder(c)),
        projector(build.Child("projector"), Projector(c)) {
    if (c.frozen_encoder) encoder.Freeze();
    if (c.frozen_projector) projector.Freeze();
    parameters = encoder.Parameters();
    if (!groups.IsLastStage()) return;
    for (Parameter* p : projector.Parameters()) parameters.push_back(p);
  }

  // With the next stage, or the one before.
  void Send(const Tensor& x, int step) {
    groups.pp->Exchange({{{Transfer::kSend, x.data(), x.numel(), x.dtype(),
                           groups.pp_rank() + step}}},
                        Stream());
  }
  Tensor Receive(int step) {
    Tensor x(allocator, encoder.PassedShape(kImages), c.dtype);
    groups.pp->Exchange({{{Transfer::kRecv, x.data(), x.numel(), x.dtype(),
                           groups.pp_rank() + step}}},
                        Stream());
    return x;
  }

  void Step() {
    Tape tape;
    const Context ctx{.allocator = &allocator, .tape = &tape};
    Var passed, out;
    if (groups.IsFirstStage()) {
      const auto encoded = encoder.Forward(
          ctx, RandomTensor(allocator, {kImages, 3, 6, 6}, c.dtype, 1));
      ASSERT_TRUE(encoded.ok()) << encoded.status();
      out = *encoded;
    } else {
      passed.value = Receive(-1);
      if (!c.frozen_encoder) passed = tape.Input(passed.value);
      out = encoder.Continue(ctx, passed, kImages);
    }
    Tensor gradient;
    if (groups.IsLastStage()) {
      features = ValuesOf(out.value);
      out = projector.Forward(ctx, out);
      rows = ValuesOf(out.value);
      gradient = RandomTensor(allocator, out.value.shape(), c.dtype, 2);
    } else {
      Send(out.value, 1);
      if (!c.frozen_encoder) gradient = Receive(1);
    }
    tape.Backward(ctx, {{out.slot, gradient}});
    if (passed.needs_grad()) Send(tape.TakeGrad(passed.slot), -1);
  }

  const Case c;
  const ParallelGroups groups;
  Allocator allocator;
  BuildContext build;
  ClipVit encoder;
  MultimodalProjector projector;
  std::vector<Parameter*> parameters;
  Values features, rows;
};

void ExpectEqualToOneRank(const Case& c, const std::vector<int>& sizes,
                          int stages = 1) {
  Trial one(c, {});
  one.Step();
  const auto whole = GradientsOf(one.parameters);
  // Some tens of roundings of values of order 1 reach each gradient.
  const double tolerance = c.dtype == DType::kFloat64 ? 1e-12 : 1e-5;
  for (int size : sizes) {
    for (bool sequence_parallel : {false, true}) {
      OnRanks(size * stages, [&](Communicator& world) {
        std::vector<std::vector<int>> tps(stages), pps(size);
        for (int rank = 0; rank < world.size(); ++rank) {
          tps[rank / size].push_back(rank);
          pps[rank % size].push_back(rank);
        }
        const auto tp = *world.Split("tp", tps), pp = *world.Split("pp", pps);
        Trial trial(c, {.tp = tp.get(),
                        .pp = pp.get(),
                        .sequence_parallel = sequence_parallel});
        trial.Step();
        SumGradsOverTp({.allocator = &trial.allocator}, trial.parameters, *tp);
        if (trial.groups.IsLastStage()) {
          EXPECT_LT(RelativeL2(trial.features, one.features), tolerance);
          EXPECT_LT(RelativeL2(trial.rows, one.rows), tolerance);
        }
        ExpectPartsOf(whole, trial.parameters, tolerance,
                      absl::StrCat("tp ", size, " sp ", sequence_parallel,
                                   " pp ", stages),
                      pp.get());
      });
    }
  }
}

TEST(VisionTensorParallel, EqualsOneRank) {
  ExpectEqualToOneRank({}, {1, 2, 3, 4});
  ExpectEqualToOneRank({.dtype = DType::kFloat32}, {2, 3, 4});
}

TEST(VisionTensorParallel, FrozenAndRecomputed) {
  for (Recompute recompute : {Recompute::kSelective, Recompute::kFull})
    ExpectEqualToOneRank({.recompute = recompute}, {2, 4});
  ExpectEqualToOneRank({.frozen_encoder = true}, {2, 4});
  ExpectEqualToOneRank({.frozen_projector = true}, {2, 4});
}

TEST(VisionTensorParallel, AffineProjector) {
  ExpectEqualToOneRank({.projector = ProjectorType::kAffine}, {2, 3});
}

TEST(VisionTensorParallel, ErrorsNameTheSizeThatIsTooSmall) {
  EXPECT_EQ(Encoder({}).CheckTensorParallel(7).message(),
            "tensor_model_parallel_size: 7, wanted a head for each rank of 6 "
            "num_attention_heads in 6 groups");
  EXPECT_EQ(Projector({}).CheckTensorParallel(10).message(),
            "ffn_hidden_size: 9, wanted at least tensor_model_parallel_size "
            "10");
}

// Two layers run of three, the stages having two of them and one: the last runs
// none. Three of four on three stages, and four of five on two.
TEST(VisionPipeline, EqualsOneRank) {
  for (DType dtype : {DType::kFloat64, DType::kFloat32}) {
    ExpectEqualToOneRank({.dtype = dtype}, {1, 2}, 2);
    ExpectEqualToOneRank({.dtype = dtype, .num_layers = 4}, {1, 2}, 3);
  }
  ExpectEqualToOneRank({.num_layers = 5}, {1, 3}, 2);
  ExpectEqualToOneRank({.num_layers = 5}, {1}, 5);
}

TEST(VisionPipeline, FrozenRecomputedAndAllTokens) {
  ExpectEqualToOneRank({.frozen_encoder = true, .num_layers = 5}, {1, 2}, 2);
  ExpectEqualToOneRank({.frozen_projector = true, .num_layers = 5}, {2}, 2);
  ExpectEqualToOneRank({.recompute = Recompute::kFull, .num_layers = 5}, {2},
                       2);
  ExpectEqualToOneRank({.num_layers = 5, .select = FeatureSelect::kFull},
                       {1, 2}, 3);
}

// All stages' parameters are the whole's, by name, value and what is frozen.
TEST(VisionPipeline, ParametersAreThoseOfTheWhole) {
  const Case c = {.num_layers = 5};
  const Trial whole(c, {});
  std::map<std::string, const Parameter*> wanted;
  for (const Parameter* p : whole.encoder.Parameters()) wanted[p->name] = p;
  for (int stages : {1, 2, 3, 5}) {
    size_t parameters = 0;
    for (int stage = 0; stage < stages; ++stage) {
      PlannedCommunicator pp(stage, stages);
      const Trial part(c, {.pp = &pp});
      parameters += part.encoder.Parameters().size();
      for (const Parameter* p : part.encoder.Parameters()) {
        ASSERT_TRUE(wanted.contains(p->name)) << p->name;
        EXPECT_EQ(ValuesOf(p->data), ValuesOf(wanted.at(p->name)->data));
        EXPECT_EQ(p->frozen, wanted.at(p->name)->frozen) << p->name;
      }
    }
    EXPECT_EQ(parameters, wanted.size());
  }
}

TEST(VisionPipeline, Errors) {
  EXPECT_TRUE(Encoder({}).CheckPipeline(3).ok());
  EXPECT_EQ(Encoder({}).CheckPipeline(4).message(),
            "num_layers: 3, wanted at least one for each of 4 stages");
}

}  // namespace
}  // namespace mimo
