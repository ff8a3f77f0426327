// A language model of cp ranks reads its own part of every sample, packed or
// padded: together they are the model of one rank, to rounding.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "mimo/nn/parallel_testing.h"
#include "mimo/nn/tensor_parallel_grads.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

// Samples of very different lengths: one token, text alone, 3 images, 1.
MicroBatch UnevenSamples() {
  PhiloxSequence random(5, 1);
  std::vector<Sample> samples(4);
  const int images[] = {0, 0, 3, 1}, text[] = {1, 6, 13, 2};
  for (size_t b = 0; b < samples.size(); ++b) {
    Sample& sample = samples[b];
    for (int i = 0; i < images[b]; ++i) {
      sample.input_ids.push_back(random.Below(kImageToken));
      sample.input_ids.insert(sample.input_ids.end(), 4, kImageToken);
      ModalityItem image{{3, 6, 6}, std::vector<float>(3 * 6 * 6)};
      for (float& x : image.values) x = random.Normal();
      sample.modalities["images"].push_back(image);
    }
    for (int i = 0; i < text[b]; ++i)
      sample.input_ids.push_back(random.Below(kImageToken));
    sample.labels = sample.input_ids;
    for (int32_t& label : sample.labels)
      if (label == kImageToken) label = kIgnoreLabel;
  }
  return Collate(samples, 0);
}

// Samples as long as the model takes, before they are padded.
MimoModelConfig Config() {
  LlavaConfig config = Tiny();
  config.language.max_sequence_length = UnevenSamples().seq;
  return LlavaModelConfig(config);
}

// Too short for the chunks of four ranks.
MicroBatch ShortText() {
  Sample sample;
  sample.input_ids = {1, 5, 7};
  sample.labels = {kIgnoreLabel, 5, 7};
  return Collate({sample}, 0);
}

// Every rank has all of the encoder, for all samples.
struct Trial {
  explicit Trial(const ParallelGroups& groups = {})
      : groups(groups),
        model(*MimoModel::Build(
            Config(), BuiltinModules(),
            {.allocator = &allocator, .dtype = DType::kFloat64, .seed = 11},
            ModelPlacement{.role = WholeModel(Config()),
                           .parallel = {{"language", groups}}})) {}

  double Step(const MicroBatch& batch, const PrepareOptions& options) {
    Tape tape;
    const Context ctx{.allocator = &allocator, .tape = &tape};
    const ModelInputs inputs = *model->Prepare(ctx, batch, options);
    const Var hidden = *model->Forward(ctx, inputs);
    const Tensor dloss = Tensor::From<double>(allocator, {1}, {0.5});
    const Var loss =
        model->language_model().Loss(ctx, hidden, inputs.targets, dloss);
    tape.Backward(ctx, {{loss.slot, dloss}});
    if (groups.cp == nullptr) return HostValue(loss.value);
    for (Parameter* p : model->Parameters())
      if (!p->frozen) SumOverCp(p->Grad());
    if (groups.tp != nullptr)
      SumGradsOverTp(ctx, model->module("language").Parameters(), *groups.tp);
    SumOverCp(loss.value);
    return HostValue(loss.value);
  }
  void SumOverCp(const Tensor& x) {
    groups.cp->AllReduce(x.data(), x.data(), x.numel(), x.dtype(),
                         ReduceOp::kSum, Stream());
  }

  ParallelGroups groups;
  Allocator allocator;
  std::unique_ptr<MimoModel> model;
};

void ExpectEqualToOneRank(const MicroBatch& batch, int cp_size, int tp_size,
                          bool sequence_parallel,
                          const PrepareOptions& options) {
  Trial one;
  const double loss = one.Step(batch, {});
  const auto whole = GradientsOf(one.model->Parameters());
  OnRanks(cp_size * tp_size, [&](Communicator& world) {
    std::vector<std::vector<int>> tps(cp_size), cps(tp_size);
    for (int rank = 0; rank < world.size(); ++rank) {
      tps[rank / tp_size].push_back(rank);
      cps[rank % tp_size].push_back(rank);
    }
    const auto tp = *world.Split("tp", tps), cp = *world.Split("cp", cps);
    Trial trial({.tp = tp_size > 1 ? tp.get() : nullptr,
                 .cp = cp.get(),
                 .sequence_parallel = sequence_parallel});
    const std::string what = absl::StrCat(
        "cp ", cp_size, " tp ", tp_size, " sp ", sequence_parallel,
        " all_rows ", options.all_rows, " packed ", options.packed);
    EXPECT_NEAR(trial.Step(batch, options) / loss, 1, 1e-13) << what;
    // Some tens of roundings of values of order 1.
    ExpectPartsOf(whole, trial.model->Parameters(), 1e-12, what);
  });
}

TEST(ContextParallel, EqualsOneRank) {
  for (const MicroBatch& batch : {UnevenSamples(), ShortText()}) {
    for (bool all_rows : {false, true}) {
      for (bool packed : {false, true}) {
        const PrepareOptions options = {all_rows, packed};
        for (int cp_size : {1, 2, 3, 4})
          ExpectEqualToOneRank(batch, cp_size, 1, false, options);
        for (bool sequence_parallel : {false, true})
          for (int cp_size : {1, 2})
            ExpectEqualToOneRank(batch, cp_size, 2, sequence_parallel, options);
      }
    }
  }
}

// Each cp rank has two chunks of each sample, padded for itself.
TEST(ContextParallel, PackedRowsAreThoseOfTheSamplesAlone) {
  const MicroBatch batch = UnevenSamples();
  EXPECT_EQ(batch.lengths, std::vector<int32_t>({1, 6, 28, 7}));
  const auto rows = [](const ModelInputs& inputs) {
    return inputs.layout.text_ids.numel();
  };
  Trial one;
  const Context ctx{.allocator = &one.allocator};
  EXPECT_EQ(rows(*one.model->Prepare(ctx, batch)), 4 * 28);
  EXPECT_EQ(rows(*one.model->Prepare(ctx, batch, {.packed = true})), 42);
  OnRanks(2, [&](Communicator& cp) {
    Trial trial({.cp = &cp});
    const Context ctx{.allocator = &trial.allocator};
    const ModelInputs inputs =
        *trial.model->Prepare(ctx, batch, {.packed = true});
    EXPECT_EQ(rows(inputs), (4 + 8 + 28 + 8) / 2);
    EXPECT_EQ(inputs.seq, 28 / 2);
  });
}

TEST(ContextParallel, PackingWantsTheLengthOfEachSample) {
  Trial one;
  MimoStage stage(*one.model, one.allocator, {.pack = true});
  const auto error = [&](const std::vector<int32_t>& lengths) {
    MicroBatch batch = UnevenSamples();
    batch.lengths = lengths;
    return std::string(stage.ForwardBackward({batch}, 1).status().message());
  };
  EXPECT_EQ(error({1, 6, 28, 7}), "");
  EXPECT_EQ(error({1, 6}), "lengths: of 2 samples, wanted 4");
  EXPECT_EQ(error({1, 0, 28, 7}),
            "lengths: a sample of 0 tokens, wanted 1 to 28");
  EXPECT_EQ(error({1, 29, 28, 7}),
            "lengths: a sample of 29 tokens, wanted 1 to 28");
}

TEST(ContextParallel, TokensOfARankAreItsChunksOfPaddedSamples) {
  using Tokens = std::vector<int32_t>;
  EXPECT_EQ(TokensOfRank({3, 3}, 3).tokens, Tokens({0, 1, 2, 3, 4, 5}));
  // Two samples of 5 tokens in 4 chunks of 2.
  EXPECT_EQ(TokensOfRank({5, 5}, 5, 2, 0).tokens,
            Tokens({0, 1, 5, 6, -1, -1, -1, -1}));
  EXPECT_EQ(TokensOfRank({5, 5}, 5, 2, 1).tokens,
            Tokens({2, 3, 7, 8, 4, -1, 9, -1}));
  // Of 6 and 4 of 12 tokens: Megatron-Bridge's example.
  const RankTokens packed = TokensOfRank({6, 4}, 12);
  EXPECT_EQ(packed.tokens, Tokens({0, 1, 2, 3, 4, 5, 12, 13, 14, 15}));
  EXPECT_EQ(packed.positions, Tokens({0, 1, 2, 3, 4, 5, 0, 1, 2, 3}));
  EXPECT_EQ(packed.cu_seqlens, Tokens({0, 6, 10}));
  // 4 chunks of 2 and of 1: rank 1 has the second and third.
  const RankTokens of_one = TokensOfRank({6, 4}, 12, 2, 1);
  EXPECT_EQ(of_one.tokens, Tokens({2, 3, 13, 4, 5, 14}));
  EXPECT_EQ(of_one.positions, Tokens({2, 3, 1, 4, 5, 2}));
  EXPECT_EQ(of_one.cu_seqlens, Tokens({0, 2, 3}));
}

TEST(ContextParallel, LabelsAreThoseBehindInTheWholeSample) {
  const std::vector<int32_t> labels = {10, 11, 12, 13, 14, 20, 21, 22, 23, 24};
  const auto following = [&](const std::vector<int32_t>& tokens) {
    return ShiftLabels(labels, 5, tokens);
  };
  constexpr int32_t kNone = kIgnoreLabel;
  EXPECT_EQ(following(TokensOfRank({5, 5}, 5, 2, 0).tokens),
            std::vector<int32_t>({11, 12, 21, 22, kNone, kNone, kNone, kNone}));
  EXPECT_EQ(following(TokensOfRank({5, 5}, 5, 2, 1).tokens),
            std::vector<int32_t>({13, 14, 23, 24, kNone, kNone, kNone, kNone}));
}

// Each of a modality's rows is placed by the rank that has its token.
TEST(ContextParallel, RowsOfOtherRanksAreNotPlaced) {
  Allocator allocator;
  const std::vector<int32_t> ids = {7, kImageToken, kImageToken, 8, kImageToken,
                                    3, 4,           5,           6, 9};
  const auto layout =
      *LayOutTokens(allocator, ids, TokensOfRank({5, 5}, 5, 2, 1).tokens,
                    {{"images", kImageToken}}, 32);
  const auto values = [](const Tensor& x) {
    const auto span = x.span<int32_t>();
    return std::vector<int32_t>(span.begin(), span.end());
  };
  EXPECT_EQ(values(layout.text_ids),
            std::vector<int32_t>({-1, 8, 5, 6, -1, -1, 9, -1}));
  EXPECT_EQ(values(layout.positions.at("images")),
            std::vector<int32_t>({-1, 0, 4}));
}

TEST(ContextParallel, GenerationWantsOneRank) {
  OnRanks(2, [&](Communicator& cp) {
    Trial trial({.cp = &cp});
    const Context ctx{.allocator = &trial.allocator};
    const ModelInputs inputs = *trial.model->Prepare(ctx, ShortText());
    auto caches = trial.model->language_model().MakeCaches(ctx, 1, 8);
    EXPECT_EQ(trial.model->Forward(ctx, inputs, &caches).status().message(),
              "context_parallel_size: 2, wanted 1 to generate tokens");
  });
}

}  // namespace
}  // namespace mimo
