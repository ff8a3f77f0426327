// Pictures of 8-bit channels in memory.
#ifndef MIMO_MIMO_DATA_IMAGE_IMAGE_H_
#define MIMO_MIMO_DATA_IMAGE_IMAGE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mimo {

using Rgb = std::array<uint8_t, 3>;
inline constexpr Rgb kWhite = {255, 255, 255};

// Channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha (not
// premultiplied).
struct Image {
  int height = 0, width = 0, channels = 0;
  std::vector<uint8_t> pixels;  // [height, width, channels]

  Image() = default;
  Image(int height, int width, int channels)
      : height(height),
        width(width),
        channels(channels),
        pixels(static_cast<size_t>(height) * width * channels) {}

  bool has_alpha() const { return channels == 2 || channels == 4; }
  uint8_t* at(int y, int x) {
    return &pixels[(static_cast<size_t>(y) * width + x) * channels];
  }
  const uint8_t* at(int y, int x) const {
    return &pixels[(static_cast<size_t>(y) * width + x) * channels];
  }
  bool operator==(const Image&) const = default;
};

// RGB: grey spread to three channels; alpha, where there is any, laid on
// `background`.
Image CompositeOnBackground(const Image& image, Rgb background = kWhite);

// Grey spread to three channels; alpha kept.
Image ToRgba(const Image& image);

// The [height, width] part whose upper left corner is at (top, left), which may
// be outside: what lies beyond the picture is 0 (black, or clear).
Image Crop(const Image& image, int top, int left, int height, int width);

// As Hugging Face's center_crop: top = floor((H - height) / 2).
Image CenterCrop(const Image& image, int height, int width);

// Bicubic (a = -0.5), the kernel stretched when shrinking (antialias); two
// passes, columns then rows, with 8-bit values between them and 22-bit fixed
// point weights; alpha is premultiplied on the way. Equal to Pillow's
// Image.resize(..., Image.BICUBIC) bit by bit (11, 12; 13 may
// take rows first, which rounds differently).
Image ResizeBicubic(const Image& image, int height, int width);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_IMAGE_IMAGE_H_
