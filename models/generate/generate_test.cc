#include "models/generate/generate.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

using GenerateTest = MimoModelTest;

TEST_F(GenerateTest, CachedGenerationIsTheUncachedArgmax) {
  auto model = Build(Tiny());
  const Context ctx{.allocator = &allocator_};
  const MicroBatch batch = TwoSamples();
  std::vector<int32_t> prompt(batch.input_ids.begin(),
                              batch.input_ids.begin() + batch.lengths[0]);
  ModalityInputs inputs = model->InputsOf(ctx, batch);
  inputs["images"]["clip_encoder"] =
      inputs["images"]["clip_encoder"].Rows(0, 1);
  const auto generated =
      Generate(ctx, *model, prompt, inputs, {.max_new_tokens = 8});
  ASSERT_TRUE(generated.ok()) << generated.status();
  ASSERT_EQ(generated->size(), 8u);
  for (int32_t token : *generated) {
    ASSERT_NE(token, kImageToken);  // which a prompt could not hold as text
    const auto prepared = model->Prepare(ctx, prompt, 1, prompt.size(), inputs);
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    const auto hidden = model->Forward(ctx, *prepared);
    ASSERT_TRUE(hidden.ok()) << hidden.status();
    const Tensor logits = model->language_model().Logits(
        ctx, hidden->value.Rows(prompt.size() - 1, prompt.size()));
    const auto l = logits.span<float>();
    EXPECT_EQ(token, std::max_element(l.begin(), l.end()) - l.begin());
    prompt.push_back(token);
  }
}

TEST_F(GenerateTest, GenerationStopsAtEosAndAtTheLimit) {
  auto model = Build(Tiny());
  const Context ctx{.allocator = &allocator_};
  const auto all = Generate(ctx, *model, {1, 2}, {}, {.max_new_tokens = 1000});
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->size(), 63u);  // 64 positions, 2 of the prompt, one past
  const auto until = Generate(ctx, *model, {1, 2}, {},
                              {.max_new_tokens = 1000, .eos_id = (*all)[3]});
  ASSERT_TRUE(until.ok());
  EXPECT_LE(until->size(), 3u);
}

TEST_F(GenerateTest, SamplingFollowsItsSeedAndItsCuts) {
  auto model = Build(Tiny());
  const Context ctx{.allocator = &allocator_};
  GenerateOptions options{.max_new_tokens = 20, .temperature = 2, .seed = 3};
  const auto a = *Generate(ctx, *model, {1, 2}, {}, options);
  EXPECT_EQ(a, *Generate(ctx, *model, {1, 2}, {}, options));
  options.seed = 4;
  EXPECT_NE(a, *Generate(ctx, *model, {1, 2}, {}, options));
  const auto greedy =
      *Generate(ctx, *model, {1, 2}, {}, {.max_new_tokens = 20});
  options.top_k = 1;
  EXPECT_EQ(greedy, *Generate(ctx, *model, {1, 2}, {}, options));
  options.top_k = 0;
  options.top_p = 1e-9;
  EXPECT_EQ(greedy, *Generate(ctx, *model, {1, 2}, {}, options));
  options.top_p = 0;
  EXPECT_EQ(Generate(ctx, *model, {1, 2}, {}, options).status().message(),
            "top_p: 0, wanted in (0, 1]");
}

}  // namespace
}  // namespace mimo
