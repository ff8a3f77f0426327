#include "mimo/data/image/image.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "gtest/gtest.h"
#include "mimo/data/image/codec.h"
#include "mimo/data/image/pillow_golden.h"
#include "mimo/data/image/preprocess.h"

namespace mimo {
namespace {

Image Fixture(const std::string& name) {
  auto image = ReadImage("tests/fixtures/images/" + name);
  EXPECT_TRUE(image.ok()) << image.status();
  return image.ok() ? *std::move(image) : Image(1, 1, 3);
}

TEST(ResizeBicubic, EqualsPillowBitByBit) {
  for (const auto& golden : pillow::kResized) {
    const Image in = Fixture(golden.file);
    ASSERT_EQ(in.channels, golden.channels) << golden.file;
    const Image out = ResizeBicubic(in, golden.height, golden.width);
    ASSERT_EQ(out.height, golden.height);
    ASSERT_EQ(out.width, golden.width);
    EXPECT_EQ(crc32(0, out.pixels.data(), out.pixels.size()), golden.crc)
        << golden.file << " to " << golden.height << " x " << golden.width;
  }
}

// Alpha is a weight: a clear pixel's hidden colour must not bleed.
TEST(ResizeBicubic, ClearPixelsHaveNoColour) {
  Image in(1, 2, 4);
  in.pixels = {200, 100, 50, 255, 0, 255, 255, 0};
  const Image out = ResizeBicubic(in, 1, 1);
  EXPECT_NEAR(out.pixels[0], 200, 2);
  EXPECT_NEAR(out.pixels[1], 100, 2);
  EXPECT_NEAR(out.pixels[2], 50, 2);
  EXPECT_NEAR(out.pixels[3], 128, 1);
}

TEST(ClipPreprocess, EqualsHuggingFace) {
  for (const auto& golden : pillow::kClip) {
    const std::vector<float> out =
        ClipPreprocess(Fixture(golden.file), golden.size);
    ASSERT_EQ(out.size(), 3u * golden.size * golden.size);
    // Values are printed with 6 digits; the sum of 3 * 56^2 floats of about 1,
    // each rounded to 1e-7, with 5.
    EXPECT_NEAR(out.front(), golden.first, 2e-6) << golden.file;
    EXPECT_NEAR(out.back(), golden.last, 2e-6) << golden.file;
    EXPECT_NEAR(std::accumulate(out.begin(), out.end(), 0.0), golden.sum, 5e-3)
        << golden.file << " at " << golden.size;
  }
}

TEST(FitSquare, SquashKeepsEverythingCropKeepsTheMiddle) {
  Image in(8, 16, 1);  // a white column at the left edge
  for (int y = 0; y < 8; ++y) in.at(y, 0)[0] = in.at(y, 1)[0] = 255;
  const Image squashed = FitSquare(in, 8, Fit::kSquash);
  const Image cropped = FitSquare(in, 8, Fit::kCrop);
  EXPECT_GT(squashed.at(4, 0)[0], 200);
  EXPECT_EQ(cropped.at(4, 0)[0], 0);
}

TEST(CompositeOnBackground, WeighsByAlpha) {
  Image in(1, 4, 4);
  in.pixels = {10, 20, 30, 255, 10, 20, 30, 0, 255, 0, 0, 51, 0, 0, 0, 128};
  const Image out = CompositeOnBackground(in, {100, 200, 50});
  const std::vector<uint8_t> want = {10,  20,  30, 100, 200, 50,
                                     131, 160, 40, 50,  100, 25};
  ASSERT_EQ(out.channels, 3);
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(out.pixels[i], want[i], 0.6) << i;
  }
}

TEST(CompositeOnBackground, NeverWraps) {
  Image in(256, 256, 2);
  for (int v = 0; v < 256; ++v) {
    for (int a = 0; a < 256; ++a) {
      in.at(v, a)[0] = v;
      in.at(v, a)[1] = a;
    }
  }
  const Image out = CompositeOnBackground(in, {255, 0, 128});
  for (int v = 0; v < 256; ++v) {
    for (int a = 0; a < 256; ++a) {
      EXPECT_NEAR(out.at(v, a)[0], (v * a + 255 * (255 - a)) / 255.0, 0.51);
      EXPECT_NEAR(out.at(v, a)[1], v * a / 255.0, 0.51);
    }
  }
}

TEST(ToRgba, SpreadsGreyAndKeepsAlpha) {
  Image in(1, 1, 2);
  in.pixels = {7, 9};
  EXPECT_EQ(ToRgba(in).pixels, (std::vector<uint8_t>{7, 7, 7, 9}));
  Image rgb(1, 1, 3);
  rgb.pixels = {1, 2, 3};
  EXPECT_EQ(ToRgba(rgb).pixels, (std::vector<uint8_t>{1, 2, 3, 255}));
}

TEST(CenterCrop, OddEdgesAndLargerThanThePicture) {
  Image in(3, 3, 1);
  std::iota(in.pixels.begin(), in.pixels.end(), 1);
  EXPECT_EQ(CenterCrop(in, 1, 1).pixels, (std::vector<uint8_t>{5}));
  EXPECT_EQ(CenterCrop(in, 2, 2).pixels, (std::vector<uint8_t>{1, 2, 4, 5}));
  // (3 - 5) / 2 rounds to -1: one row and column of black on each side.
  const Image wide = CenterCrop(in, 5, 5);
  EXPECT_EQ(wide.at(0, 0)[0], 0);
  EXPECT_EQ(wide.at(1, 1)[0], 1);
  EXPECT_EQ(wide.at(3, 3)[0], 9);
  EXPECT_EQ(wide.at(4, 4)[0], 0);
  EXPECT_EQ(Crop(in, 10, 10, 2, 2).pixels, std::vector<uint8_t>(4, 0));
}

}  // namespace
}  // namespace mimo
