#include "mimo/data/image/augment.h"

#include <cmath>

#include "gtest/gtest.h"
#include "mimo/data/image/preprocess.h"

namespace mimo {
namespace {

Image Noise(int height, int width, int channels) {
  Image image(height, width, channels);
  PhiloxSequence random(1, 2);
  for (uint8_t& p : image.pixels) p = random.Below(256);
  return image;
}

std::vector<float> View(const Image& image, int size,
                        const AugmentOptions& options, uint64_t stream) {
  PhiloxSequence random(7, stream);
  return Augment(image, size, options, random);
}

TEST(Augment, NothingDrawnIsThePictureItself) {
  const Image image = Noise(9, 9, 3);
  const std::vector<float> got = View(ToRgba(image), 9, {}, 0);
  const std::vector<float> want = Normalize(image);
  ASSERT_EQ(got.size(), want.size());
  // Interpolation weights are exact up to float rounding of positions up to 9.
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-4);
}

TEST(Augment, IsAFunctionOfTheSequence) {
  const Image image = Noise(48, 64, 4);
  const auto a = View(image, 32, kTrainAugment, 3);
  EXPECT_EQ(a, View(image, 32, kTrainAugment, 3));
  EXPECT_NE(a, View(image, 32, kTrainAugment, 4));
}

TEST(Augment, ShiftMovesByItsShare) {
  // One bright pixel column in the middle of 101: its place in the view tells
  // the shift.
  Image image(101, 101, 4);
  for (int y = 0; y < 101; ++y) {
    for (int x = 0; x < 101; ++x) image.at(y, x)[3] = 255;
    image.at(y, 50)[0] = 255;
  }
  double least = 1, most = -1;
  for (int i = 0; i < 200; ++i) {
    const auto view = View(image, 101, kShiftAugment, i);
    double sum = 0, weighted = 0;
    for (int x = 30; x < 71; ++x) {  // the middle row, red
      const double value = view[50 * 101 + x] * kClipStd[0] + kClipMean[0];
      sum += value;
      weighted += value * x;
    }
    const double shift = (weighted / sum - 50) / 101;
    least = std::min(least, shift);
    most = std::max(most, shift);
  }
  EXPECT_NEAR(least, -0.12, 0.01);
  EXPECT_NEAR(most, 0.12, 0.01);
}

TEST(Augment, ScaleRotationAndAspectStayInRange) {
  // A disc of 1/10 of the area: its share in the view is scale^2 (1 -
  // aspect^2).
  Image image(100, 100, 4);
  int inside = 0;
  for (int y = 0; y < 100; ++y) {
    for (int x = 0; x < 100; ++x) {
      const bool in = std::hypot(x - 49.5, y - 49.5) < 18;
      inside += in;
      const uint8_t v = in ? 0 : 255;
      image.at(y, x)[0] = image.at(y, x)[1] = image.at(y, x)[2] = v;
      image.at(y, x)[3] = 255;
    }
  }
  AugmentOptions options = kTrainAugment;
  options.gain = 0;
  options.random_background = false;
  double least = 10, most = 0;
  for (int i = 0; i < 300; ++i) {
    const auto view = View(image, 100, options, i);
    double area = 0;
    for (int p = 0; p < 100 * 100; ++p) {
      area += 1 - (view[p] * kClipStd[0] + kClipMean[0]);
    }
    least = std::min(least, area / inside);
    most = std::max(most, area / inside);
  }
  EXPECT_GT(least, 0.9 * 0.9 * (1 - 0.08 * 0.08) - 0.01);
  EXPECT_LT(most, 1.15 * 1.15 + 0.01);
  EXPECT_LT(least, 0.85);  // it does vary
  EXPECT_GT(most, 1.25);
}

TEST(Augment, BackgroundBehindAlpha) {
  const Image clear(4, 4, 4);
  AugmentOptions options;
  for (int i = 0; i < 5; ++i) {  // white when not asked for colours
    const auto view = View(clear, 2, options, i);
    EXPECT_NEAR(view[0], (1 - kClipMean[0]) / kClipStd[0], 1e-5);
  }
  options.random_background = true;
  int white = 0;
  for (int i = 0; i < 100; ++i) {
    const auto view = View(clear, 2, options, i);
    white += std::abs(view[0] - (1 - kClipMean[0]) / kClipStd[0]) < 1e-5;
  }
  EXPECT_GT(white, 25);
  EXPECT_LT(white, 75);
}

}  // namespace
}  // namespace mimo
