#include "models/gpt/gpt.h"

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/device.h"
#include "kernels/testing/backend.h"

namespace mimo {
namespace {

using Values = std::vector<double>;

class GptTest : public BackendTest {};
MIMO_ON_BACKENDS(GptTest);

// Those of a bfloat16 model as exact as its products' float32 sums: H roundings
// of 2^-24 of the sum of |x w|.
TEST_P(GptTest, LogitsInFloat32) {
  constexpr int64_t kRows = 5, kHidden = 64, kVocab = 37;
  const Backend on = backend();
  Allocator allocator(StreamOf(on));
  const Context ctx{.allocator = &allocator};
  const Values x = RandomValues(kRows * kHidden, 1);
  const Values w = RandomValues(kVocab * kHidden, 2);
  const auto copy = [&](const Values& values, const Tensor& to) {
    const Array source(on, values);
    CopyBytes(to.data(), source.data(), to.bytes(), StreamOf(on));
    Synchronize(StreamOf(on));
  };
  const Tensor hidden = ctx.Empty({kRows, kHidden}, on.dtype);
  copy(x, hidden);
  const auto logits = [&](std::optional<DType> logit_dtype) {
    GptModel model({.allocator = &allocator, .dtype = on.dtype},
                   {.num_layers = 1,
                    .hidden_size = kHidden,
                    .ffn_hidden_size = 8,
                    .num_attention_heads = 2,
                    .vocab_size = kVocab,
                    .max_sequence_length = 8,
                    .tie_word_embeddings = true,
                    .logit_dtype = logit_dtype});
    copy(w, model.embedding().data);
    return model.Logits(ctx, hidden);
  };
  const auto get = [&](const Tensor& tensor) {
    const Array values = Array::Poisoned(on, tensor.dtype(), tensor.numel());
    CopyBytes(values.data(), tensor.data(), tensor.bytes(), StreamOf(on));
    return values.Values();
  };
  const Tensor plain = logits({}), wide = logits(DType::kFloat32);
  EXPECT_EQ(plain.dtype(), on.dtype);
  EXPECT_EQ(wide.dtype(), DType::kFloat32);
  EXPECT_EQ(wide.shape(), (Shape{kRows, kVocab}));
  const Values got = get(wide), rounded = get(plain);
  EXPECT_EQ(got == rounded, on.dtype == DType::kFloat32);
  for (int64_t t = 0; t < kRows; ++t) {
    for (int64_t v = 0; v < kVocab; ++v) {
      double wanted = 0, absolute = 0;
      for (int64_t h = 0; h < kHidden; ++h) {
        const double product = x[t * kHidden + h] * w[v * kHidden + h];
        wanted += product;
        absolute += std::fabs(product);
      }
      const double off = kHidden * 0x1p-24 * absolute;
      const int64_t i = t * kVocab + v;
      EXPECT_NEAR(got[i], wanted, off);
      EXPECT_NEAR(rounded[i], wanted,
                  off + Roundoff(on.dtype) * (std::fabs(wanted) + off));
    }
  }
}

// An update of the head may be on its way.
TEST_P(GptTest, LogitsAskForTheHead) {
  struct Asked : ParameterObserver {
    void BeforeRead(Parameter&) override { ++times; }
    void LastUseGone(Parameter&) override {}
    int times = 0;
  } asked;
  Allocator allocator(StreamOf(backend()));
  const DType dtype = backend().dtype;
  GptModel model({.allocator = &allocator, .dtype = dtype},
                 {.num_layers = 1,
                  .hidden_size = 8,
                  .ffn_hidden_size = 8,
                  .num_attention_heads = 2,
                  .vocab_size = 16,
                  .max_sequence_length = 8,
                  .tie_word_embeddings = true});
  model.embedding().observer = &asked;
  model.Logits({.allocator = &allocator},
               Tensor::Zeros(allocator, {3, 8}, dtype));
  EXPECT_EQ(asked.times, 1);
}

}  // namespace
}  // namespace mimo
