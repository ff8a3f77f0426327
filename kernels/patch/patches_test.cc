#include "kernels/patch/patches.h"

#include <array>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/backend.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

using Values = std::vector<double>;

struct Shape {
  int64_t images, channels, height, width, patch_size;
  int64_t pixels() const { return images * channels * height * width; }
  int64_t patches() const {
    return (height / patch_size) * (width / patch_size);
  }
  int64_t patch() const { return channels * patch_size * patch_size; }
};
constexpr Shape kShapes[] = {{1, 1, 1, 1, 1},    {0, 3, 8, 8, 4},
                             {2, 3, 12, 8, 4},   {3, 2, 13, 9, 4},
                             {2, 1, 17, 150, 7}, {5, 3, 56, 56, 14},
                             {2, 3, 19, 40, 8},  {1, 3, 32, 48, 16}};

class PatchesTest : public BackendTest {};
MIMO_ON_BACKENDS(PatchesTest);

PatchArgs Args(const Backend& on, const Shape& shape, const Array& in,
               const Array& out) {
  return {.in = in.data(),
          .out = out.data(),
          .images = shape.images,
          .channels = shape.channels,
          .height = shape.height,
          .width = shape.width,
          .patch_size = shape.patch_size,
          .dtype = on.dtype};
}

Values Forward(const Backend& on, const Shape& shape, const Values& in) {
  const Array out =
      Array::Poisoned(on, shape.images * shape.patches() * shape.patch());
  const Array pixels(on, in);
  PatchForward(Args(on, shape, pixels, out), StreamOf(on));
  return out.Values();
}

Values Backward(const Backend& on, const Shape& shape, const Values& in) {
  const Array out = Array::Poisoned(on, shape.pixels());
  const Array patches(on, in);
  PatchBackward(Args(on, shape, patches, out), StreamOf(on));
  return out.Values();
}

// Copies: exact in every dtype.
TEST_P(PatchesTest, ForwardIsTheFormula) {
  for (const Shape& s : kShapes) {
    const Values x = RandomValues(s.pixels(), 1);
    const int64_t gh = s.height / s.patch_size, gw = s.width / s.patch_size;
    Values expected;
    for (int64_t n = 0; n < s.images; ++n)
      for (int64_t i = 0; i < gh; ++i)
        for (int64_t j = 0; j < gw; ++j)
          for (int64_t c = 0; c < s.channels; ++c)
            for (int64_t a = 0; a < s.patch_size; ++a)
              for (int64_t b = 0; b < s.patch_size; ++b)
                expected.push_back(
                    x[((n * s.channels + c) * s.height + i * s.patch_size + a) *
                          s.width +
                      j * s.patch_size + b]);
    EXPECT_EQ(Forward(backend(), s, x), expected);
    EXPECT_EQ(Forward(Oracle(), s, x), expected);
  }
}

// <Forward(x), p> = <x, Backward(p)>, and the remainder's gradient is 0.
TEST_P(PatchesTest, BackwardIsTheTranspose) {
  for (const Shape& s : kShapes) {
    const Values x = RandomValues(s.pixels(), 1);
    const Values p = RandomValues(s.images * s.patches() * s.patch(), 2);
    const Values back = Backward(backend(), s, p);
    EXPECT_NEAR(Dot(Forward(backend(), s, x), p), Dot(x, back), 1e-11);
    EXPECT_EQ(Forward(backend(), s, back), p);
  }
  const Shape remainder{1, 1, 3, 5, 2};
  EXPECT_EQ(Backward(backend(), remainder, Values(8, 1)),
            (Values{1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}));
}

TEST(Patches, GradientIsTheDerivative) {
  const Shape s{2, 2, 5, 7, 2};
  const Values x = RandomValues(s.pixels(), 1);
  const Values dy = RandomValues(s.images * s.patches() * s.patch(), 2);
  EXPECT_LT(GradCheck(
                [&](const Values& moved) {
                  return Dot(Forward(Oracle(), s, moved), dy);
                },
                x, Backward(Oracle(), s, dy)),
            1e-8);
}

TEST_P(PatchesTest, IsDeterministic) {
  const Shape s{7, 3, 57, 59, 8};
  const Values x = RandomValues(s.pixels(), 1);
  SetNumThreads(1);
  const Values p = Forward(backend(), s, x);
  const Values back = Backward(backend(), s, p);
  SetNumThreads(3);
  EXPECT_EQ(Forward(backend(), s, x), p);
  EXPECT_EQ(Backward(backend(), s, p), back);
}

class VisionTokensTest : public BackendTest {};
MIMO_ON_BACKENDS(VisionTokensTest);

struct TokenInputs {
  TokenInputs(int64_t images, int64_t patches, int64_t hidden, bool has_class)
      : images(images),
        patches(patches),
        hidden(hidden),
        has_class(has_class),
        x(RandomValues(images * patches * hidden, 1)),
        class_token(RandomValues(hidden, 2)),
        position(RandomValues((patches + has_class) * hidden, 3)),
        dy(RandomValues(images * (patches + has_class) * hidden, 4)),
        old_dclass(RandomValues(hidden, 5)),
        old_dposition(RandomValues(position.size(), 6)) {}
  int64_t images, patches, hidden;
  bool has_class;
  Values x, class_token, position, dy, old_dclass, old_dposition;
};

Values Tokens(const Backend& on, const TokenInputs& in) {
  const Array x(on, in.x), class_token(on, in.class_token);
  const Array position(on, in.position);
  const Array y = Array::Poisoned(on, in.dy.size());
  VisionTokensForward(
      {.x = x.data(),
       .class_token = in.has_class ? class_token.data() : nullptr,
       .position = position.data(),
       .y = y.data(),
       .images = in.images,
       .patches = in.patches,
       .hidden = in.hidden,
       .dtype = on.dtype},
      StreamOf(on));
  return y.Values();
}

struct Want {
  bool dx = true, dclass = true, dposition = true;
};

struct TokenGradients {
  Values dx, dclass, dposition;
};

TokenGradients TokensBackward(const Backend& on, const TokenInputs& in,
                              bool accumulate = false, Want want = {}) {
  const DType statistic = AccumulatorOf(on.dtype);
  const auto sink = [&](const Values& old) {
    return accumulate ? Array(on, statistic, old)
                      : Array::Poisoned(on, statistic, old.size());
  };
  const Array dy(on, in.dy), dx = Array::Poisoned(on, in.x.size());
  const Array dclass = sink(in.old_dclass), dposition = sink(in.old_dposition);
  const float beta = accumulate ? 1 : 0;
  VisionTokensBackward(
      {.dy = dy.data(),
       .class_token = in.has_class,
       .dx = want.dx ? dx.data() : nullptr,
       .dclass = in.has_class && want.dclass ? dclass.data() : nullptr,
       .dposition = want.dposition ? dposition.data() : nullptr,
       .dclass_beta = beta,
       .dposition_beta = beta,
       .images = in.images,
       .patches = in.patches,
       .hidden = in.hidden,
       .dtype = on.dtype},
      StreamOf(on));
  return {dx.Values(), dclass.Values(), dposition.Values()};
}

TEST(VisionTokens, ForwardIsTheFormula) {
  for (bool has_class : {false, true}) {
    const TokenInputs in(3, 5, 7, has_class);
    Values expected;
    for (int64_t n = 0; n < 3; ++n) {
      for (int64_t p = -has_class; p < 5; ++p) {
        for (int64_t h = 0; h < 7; ++h) {
          expected.push_back(
              (p < 0 ? in.class_token[h] : in.x[(n * 5 + p) * 7 + h]) +
              in.position[(p + has_class) * 7 + h]);
        }
      }
    }
    EXPECT_EQ(Tokens(Oracle(), in), expected);
  }
}

// One addition forward, rounded to the dtype (in bfloat16 to float32 before);
// backward a sum over up to 31 images in order, each partial sum rounded to
// 2^-24, into float32 sinks.
TEST_P(VisionTokensTest, IsNearFloat64) {
  for (auto [images, patches, hidden] : {std::array<int64_t, 3>{1, 1, 1},
                                         {31, 17, 13},
                                         {2, 67, 257},
                                         {3, 5, 1024},
                                         {2, 3, 2056}}) {
    SCOPED_TRACE(testing::Message()
                 << images << " x " << patches << " x " << hidden);
    for (bool has_class : {false, true}) {
      const TokenInputs in(images, patches, hidden, has_class);
      EXPECT_LT(RelativeL2(Tokens(backend(), in), Tokens(Oracle(), in)),
                Roundoff(backend().dtype) + 4e-8);
      const TokenGradients grads = TokensBackward(backend(), in);
      const TokenGradients oracle = TokensBackward(Oracle(), in);
      EXPECT_EQ(grads.dx, oracle.dx);
      EXPECT_LT(RelativeL2(grads.dposition, oracle.dposition), 5e-7);
      if (has_class) {
        EXPECT_LT(RelativeL2(grads.dclass, oracle.dclass), 5e-7);
      }
    }
  }
}

TEST(VisionTokens, GradientIsTheDerivative) {
  for (bool has_class : {false, true}) {
    const TokenInputs in(3, 4, 5, has_class);
    const TokenGradients grads = TokensBackward(Oracle(), in);
    const auto check = [&](Values TokenInputs::*member,
                           const Values& gradient) {
      return GradCheck(
          [&](const Values& value) {
            TokenInputs moved = in;
            moved.*member = value;
            return Dot(Tokens(Oracle(), moved), in.dy);
          },
          in.*member, gradient);
    };
    EXPECT_LT(check(&TokenInputs::x, grads.dx), 1e-8);
    EXPECT_LT(check(&TokenInputs::position, grads.dposition), 1e-8);
    if (has_class) {
      EXPECT_LT(check(&TokenInputs::class_token, grads.dclass), 1e-8);
    }
  }
}

// Sums of four values of magnitude below 1: float32 rounds each by 2^-23.
TEST_P(VisionTokensTest, GradientsAccumulate) {
  for (int64_t hidden : {5, 16}) {
    const TokenInputs in(3, 4, hidden, true);
    const TokenGradients added = TokensBackward(backend(), in, true);
    const TokenGradients oracle = TokensBackward(Oracle(), in, true);
    EXPECT_LT(MaxAbs(added.dclass, oracle.dclass), 4 * 0x1p-23);
    EXPECT_LT(MaxAbs(added.dposition, oracle.dposition), 4 * 0x1p-23);
  }
}

TEST_P(VisionTokensTest, EachGradientAlone) {
  const TokenInputs in(3, 4, 24, true);
  const TokenGradients all = TokensBackward(backend(), in);
  const auto alone = [&](Want want) {
    return TokensBackward(backend(), in, false, want);
  };
  EXPECT_EQ(alone({true, false, false}).dx, all.dx);
  EXPECT_EQ(alone({false, true, false}).dclass, all.dclass);
  EXPECT_EQ(alone({false, false, true}).dposition, all.dposition);
}

TEST_P(VisionTokensTest, NoImages) {
  const TokenInputs in(0, 2, 3, true);
  EXPECT_TRUE(Tokens(backend(), in).empty());
  EXPECT_EQ(TokensBackward(backend(), in).dclass, Values(3, 0));
  EXPECT_EQ(TokensBackward(backend(), in).dposition, Values(9, 0));
}

TEST_P(VisionTokensTest, IsDeterministic) {
  const TokenInputs in(5, 67, 257, true);
  SetNumThreads(1);
  const Values y = Tokens(backend(), in);
  const TokenGradients grads = TokensBackward(backend(), in);
  SetNumThreads(3);
  EXPECT_EQ(Tokens(backend(), in), y);
  EXPECT_EQ(TokensBackward(backend(), in).dx, grads.dx);
  EXPECT_EQ(TokensBackward(backend(), in).dclass, grads.dclass);
  EXPECT_EQ(TokensBackward(backend(), in).dposition, grads.dposition);
}

}  // namespace
}  // namespace mimo::kernels
