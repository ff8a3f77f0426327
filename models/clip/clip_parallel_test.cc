// The vision transformer and the projector behind it over tp ranks are those of
// one rank: features, projected rows and every gradient, to rounding.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
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
};

// Five tokens an image: 2, 3 and 4 ranks share three images' unevenly.
constexpr int64_t kImages = 3;

ClipVitConfig Encoder(const Case& c) {
  return {.num_layers = 3,
          .hidden_size = 12,
          .ffn_hidden_size = 10,
          .num_attention_heads = 6,
          .image_size = 6,
          .patch_size = 3,
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
        build({.allocator = &allocator,
               .dtype = c.dtype,
               .seed = 7,
               .parallel = groups}),
        encoder(build.Child("encoder"), Encoder(c)),
        projector(build.Child("projector"), Projector(c)) {
    if (c.frozen_encoder) encoder.Freeze();
    if (c.frozen_projector) projector.Freeze();
    parameters = encoder.Parameters();
    for (Parameter* p : projector.Parameters()) parameters.push_back(p);
  }

  void Step() {
    Tape tape;
    const Context ctx{.allocator = &allocator, .tape = &tape};
    const auto encoded = encoder.Forward(
        ctx, RandomTensor(allocator, {kImages, 3, 6, 6}, c.dtype, 1));
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    features = ValuesOf(encoded->value);
    const Var out = projector.Forward(ctx, *encoded);
    rows = ValuesOf(out.value);
    tape.Backward(
        ctx,
        {{out.slot, RandomTensor(allocator, out.value.shape(), c.dtype, 2)}});
  }

  const Case c;
  Allocator allocator;
  BuildContext build;
  ClipVit encoder;
  MultimodalProjector projector;
  std::vector<Parameter*> parameters;
  Values features, rows;
};

void ExpectEqualToOneRank(const Case& c, std::vector<int> sizes) {
  Trial one(c, {});
  one.Step();
  const auto whole = GradientsOf(one.parameters);
  // Some tens of roundings of values of order 1 reach each gradient.
  const double tolerance = c.dtype == DType::kFloat64 ? 1e-12 : 1e-5;
  for (int size : sizes) {
    for (bool sequence_parallel : {false, true}) {
      OnRanks(size, [&](Communicator& tp) {
        Trial trial(c, {.tp = &tp, .sequence_parallel = sequence_parallel});
        trial.Step();
        SumGradsOverTp({.allocator = &trial.allocator}, trial.parameters, tp);
        EXPECT_LT(RelativeL2(trial.features, one.features), tolerance);
        EXPECT_LT(RelativeL2(trial.rows, one.rows), tolerance);
        ExpectPartsOf(whole, trial.parameters, tolerance,
                      absl::StrCat("tp ", size, " sp ", sequence_parallel));
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

}  // namespace
}  // namespace mimo
