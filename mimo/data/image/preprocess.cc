#include "mimo/data/image/preprocess.h"

#include <algorithm>
#include <cstdint>

#include "absl/log/check.h"

namespace mimo {

std::vector<float> Normalize(const Image& rgb) {
  CHECK_EQ(rgb.channels, 3) << "Normalize";
  const size_t plane = static_cast<size_t>(rgb.height) * rgb.width;
  std::vector<float> out(3 * plane);
  for (size_t i = 0; i < plane; ++i) {
    for (int c = 0; c < 3; ++c) {
      const float value = rgb.pixels[3 * i + c] * (1.0f / 255);
      out[c * plane + i] = (value - kClipMean[c]) / kClipStd[c];
    }
  }
  return out;
}

Image FitSquare(const Image& image, int size, Fit fit) {
  const Image rgb = CompositeOnBackground(image);
  if (fit == Fit::kSquash) return ResizeBicubic(rgb, size, size);
  // The longer edge is rounded down, as in Hugging Face transformers.
  const int64_t shorter = std::min(rgb.height, rgb.width);
  const auto edge = [&](int64_t n) {
    return static_cast<int>(n == shorter ? size : size * n / shorter);
  };
  return CenterCrop(ResizeBicubic(rgb, edge(rgb.height), edge(rgb.width)), size,
                    size);
}

std::vector<float> ClipPreprocess(const Image& image, int size, Fit fit) {
  return Normalize(FitSquare(image, size, fit));
}

}  // namespace mimo
