#include "kernels/patch/patches.h"

#include <array>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/testing/testing.h"

namespace mimo::kernels {
namespace {

struct Shape {
  int64_t images, channels, height, width, patch_size;
  int64_t pixels() const { return images * channels * height * width; }
  int64_t patches() const {
    return (height / patch_size) * (width / patch_size);
  }
  int64_t patch() const { return channels * patch_size * patch_size; }
};
constexpr Shape kShapes[] = {{1, 1, 1, 1, 1},
                             {0, 3, 8, 8, 4},
                             {2, 3, 12, 8, 4},
                             {3, 2, 13, 9, 4},
                             {5, 3, 56, 56, 14}};

template <typename T>
PatchArgs Args(const Shape& shape, const std::vector<T>& in,
               std::vector<T>& out) {
  return {.in = in.data(),
          .out = out.data(),
          .images = shape.images,
          .channels = shape.channels,
          .height = shape.height,
          .width = shape.width,
          .patch_size = shape.patch_size,
          .dtype = DTypeOf<T>::value};
}

template <typename T>
std::vector<T> Forward(const Shape& shape, const std::vector<T>& in) {
  std::vector<T> out =
      Poisoned<T>(shape.images * shape.patches() * shape.patch());
  PatchForward(Args(shape, in, out), Stream());
  return out;
}

template <typename T>
std::vector<T> Backward(const Shape& shape, const std::vector<T>& in) {
  std::vector<T> out = Poisoned<T>(shape.pixels());
  PatchBackward(Args(shape, in, out), Stream());
  return out;
}

// Copies: exact in either dtype.
TEST(Patches, ForwardIsTheFormula) {
  for (const Shape& s : kShapes) {
    const auto x = RandomVector<float>(s.pixels(), 1);
    const int64_t gh = s.height / s.patch_size, gw = s.width / s.patch_size;
    std::vector<float> expected;
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
    EXPECT_EQ(Forward(s, x), expected);
    const auto x64 = RandomVector<double>(s.pixels(), 1);
    EXPECT_EQ(MaxAbs(Forward(s, x64), expected), 0);
  }
}

// <Forward(x), p> = <x, Backward(p)>, and the remainder's gradient is 0.
TEST(Patches, BackwardIsTheTranspose) {
  for (const Shape& s : kShapes) {
    const auto x = RandomVector<double>(s.pixels(), 1);
    const auto p = RandomVector<double>(s.images * s.patches() * s.patch(), 2);
    EXPECT_NEAR(Dot(Forward(s, x), p), Dot(x, Backward(s, p)), 1e-11);
    EXPECT_EQ(Forward(s, Backward(s, p)), p);
  }
  const Shape remainder{1, 1, 3, 5, 2};
  EXPECT_EQ(Backward(remainder, std::vector<float>(8, 1)),
            (std::vector<float>{1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}));
}

TEST(Patches, GradientIsTheDerivative) {
  const Shape s{2, 2, 5, 7, 2};
  const auto x = RandomVector<double>(s.pixels(), 1);
  const auto dy = RandomVector<double>(s.images * s.patches() * s.patch(), 2);
  EXPECT_LT(GradCheck(
                [&](const std::vector<double>& moved) {
                  return Dot(Forward(s, moved), dy);
                },
                x, Backward(s, dy)),
            1e-8);
}

TEST(Patches, ThreadsDoNotChangeABit) {
  const Shape s{7, 3, 57, 59, 8};
  const auto x = RandomVector<float>(s.pixels(), 1);
  SetNumThreads(1);
  const std::vector<float> p = Forward(s, x);
  const std::vector<float> back = Backward(s, p);
  SetNumThreads(3);
  EXPECT_EQ(Forward(s, x), p);
  EXPECT_EQ(Backward(s, p), back);
}

template <typename T>
struct TokenInputs {
  TokenInputs(int64_t images, int64_t patches, int64_t hidden, bool has_class)
      : images(images),
        patches(patches),
        hidden(hidden),
        has_class(has_class),
        x(RandomVector<T>(images * patches * hidden, 1)),
        class_token(RandomVector<T>(hidden, 2)),
        position(RandomVector<T>((patches + has_class) * hidden, 3)),
        dy(RandomVector<T>(images * (patches + has_class) * hidden, 4)),
        old_dclass(RandomVector<T>(hidden, 5)),
        old_dposition(RandomVector<T>(position.size(), 6)) {}
  int64_t images, patches, hidden;
  bool has_class;
  std::vector<T> x, class_token, position, dy, old_dclass, old_dposition;
};

template <typename T>
std::vector<T> Tokens(const TokenInputs<T>& in) {
  std::vector<T> y = Poisoned<T>(in.dy.size());
  VisionTokensForward(
      {.x = in.x.data(),
       .class_token = in.has_class ? in.class_token.data() : nullptr,
       .position = in.position.data(),
       .y = y.data(),
       .images = in.images,
       .patches = in.patches,
       .hidden = in.hidden,
       .dtype = DTypeOf<T>::value},
      Stream());
  return y;
}

template <typename T>
struct TokenGradients {
  std::vector<T> dx, dclass, dposition;
};

template <typename T>
TokenGradients<T> TokensBackward(const TokenInputs<T>& in,
                                 bool accumulate = false) {
  TokenGradients<T> grads{Poisoned<T>(in.x.size()), Poisoned<T>(in.hidden),
                          Poisoned<T>(in.position.size())};
  if (accumulate) {
    grads.dclass = in.old_dclass;
    grads.dposition = in.old_dposition;
  }
  const float beta = accumulate ? 1 : 0;
  VisionTokensBackward({.dy = in.dy.data(),
                        .class_token = in.has_class,
                        .dx = grads.dx.data(),
                        .dclass = in.has_class ? grads.dclass.data() : nullptr,
                        .dposition = grads.dposition.data(),
                        .dclass_beta = beta,
                        .dposition_beta = beta,
                        .images = in.images,
                        .patches = in.patches,
                        .hidden = in.hidden,
                        .dtype = DTypeOf<T>::value},
                       Stream());
  return grads;
}

TEST(VisionTokens, ForwardIsTheFormula) {
  for (bool has_class : {false, true}) {
    const TokenInputs<double> in(3, 5, 7, has_class);
    std::vector<double> expected;
    for (int64_t n = 0; n < 3; ++n) {
      for (int64_t p = -has_class; p < 5; ++p) {
        for (int64_t h = 0; h < 7; ++h) {
          expected.push_back(
              (p < 0 ? in.class_token[h] : in.x[(n * 5 + p) * 7 + h]) +
              in.position[(p + has_class) * 7 + h]);
        }
      }
    }
    EXPECT_EQ(Tokens(in), expected);
  }
}

// One addition forward; backward a sum over up to 31 images in order, each
// partial sum rounded to 2^-24.
TEST(VisionTokens, Float32IsNearFloat64) {
  for (auto [images, patches, hidden] :
       {std::array<int64_t, 3>{1, 1, 1}, {31, 17, 13}, {2, 67, 257}}) {
    for (bool has_class : {false, true}) {
      const TokenInputs<float> in32(images, patches, hidden, has_class);
      const TokenInputs<double> in64(images, patches, hidden, has_class);
      EXPECT_LT(RelativeL2(Tokens(in32), Tokens(in64)), 1e-7);
      const TokenGradients<float> grads32 = TokensBackward(in32);
      const TokenGradients<double> grads64 = TokensBackward(in64);
      EXPECT_EQ(MaxAbs(grads32.dx, grads64.dx), 0);
      EXPECT_LT(RelativeL2(grads32.dposition, grads64.dposition), 5e-7);
      if (has_class) {
        EXPECT_LT(RelativeL2(grads32.dclass, grads64.dclass), 5e-7);
      }
    }
  }
}

TEST(VisionTokens, GradientIsTheDerivative) {
  for (bool has_class : {false, true}) {
    const TokenInputs<double> in(3, 4, 5, has_class);
    const TokenGradients<double> grads = TokensBackward(in);
    const auto check = [&](std::vector<double> TokenInputs<double>::*member,
                           const std::vector<double>& gradient) {
      return GradCheck(
          [&](const std::vector<double>& value) {
            TokenInputs<double> moved = in;
            moved.*member = value;
            return Dot(Tokens(moved), in.dy);
          },
          in.*member, gradient);
    };
    EXPECT_LT(check(&TokenInputs<double>::x, grads.dx), 1e-8);
    EXPECT_LT(check(&TokenInputs<double>::position, grads.dposition), 1e-8);
    if (has_class) {
      EXPECT_LT(check(&TokenInputs<double>::class_token, grads.dclass), 1e-8);
    }
  }
}

TEST(VisionTokens, GradientsAccumulate) {
  const TokenInputs<double> in(3, 4, 5, true);
  const TokenGradients<double> written = TokensBackward(in);
  const TokenGradients<double> added = TokensBackward(in, true);
  for (size_t i = 0; i < written.dclass.size(); ++i)
    EXPECT_NEAR(added.dclass[i], in.old_dclass[i] + written.dclass[i], 1e-14);
  for (size_t i = 0; i < written.dposition.size(); ++i) {
    EXPECT_NEAR(added.dposition[i], in.old_dposition[i] + written.dposition[i],
                1e-14);
  }
}

TEST(VisionTokens, NoImages) {
  const TokenInputs<float> in(0, 2, 3, true);
  EXPECT_TRUE(Tokens(in).empty());
  EXPECT_EQ(TokensBackward(in).dclass, std::vector<float>(3, 0));
  EXPECT_EQ(TokensBackward(in).dposition, std::vector<float>(9, 0));
}

TEST(VisionTokens, ThreadsDoNotChangeABit) {
  const TokenInputs<float> in(5, 67, 257, true);
  SetNumThreads(1);
  const std::vector<float> y = Tokens(in);
  const TokenGradients<float> grads = TokensBackward(in);
  SetNumThreads(3);
  EXPECT_EQ(Tokens(in), y);
  EXPECT_EQ(TokensBackward(in).dx, grads.dx);
  EXPECT_EQ(TokensBackward(in).dclass, grads.dclass);
  EXPECT_EQ(TokensBackward(in).dposition, grads.dposition);
}

}  // namespace
}  // namespace mimo::kernels
