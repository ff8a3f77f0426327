#include "mimo/data/image/augment.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/log/check.h"
#include "mimo/data/image/preprocess.h"

namespace mimo {

std::vector<float> Augment(const Image& rgba, int size,
                           const AugmentOptions& options,
                           PhiloxSequence& random) {
  CHECK_EQ(rgba.channels, 4) << "Augment";
  const auto draw = [&](double low, double high) {
    return low + (high - low) * random.Uniform();
  };
  // The order of draws is part of the result: new ones go last.
  const double scale = draw(options.min_scale, options.max_scale);
  const double aspect = draw(-options.aspect, options.aspect);
  const double angle =
      draw(-options.rotation, options.rotation) * (std::numbers::pi / 180);
  const double shift_x = draw(-options.shift, options.shift);
  const double shift_y = draw(-options.shift, options.shift);
  float gain[3], background[3];
  for (float& g : gain) g = draw(1 - options.gain, 1 + options.gain);
  const bool plain = random.Uniform() < 0.5 || !options.random_background;
  for (int c = 0; c < 3; ++c) {
    const double value = draw(0, 255);
    background[c] = plain ? options.background[c] : value;
  }

  // Position in the picture of a view's pixel, both from their middles and in
  // shares of their edges: rotated back, shrunk back.
  const double sx = 1 / (scale * (1 + aspect)), sy = 1 / (scale * (1 - aspect));
  const double cos = std::cos(angle), sin = std::sin(angle);
  const size_t plane = static_cast<size_t>(size) * size;
  std::vector<float> out(3 * plane);
  for (int y = 0; y < size; ++y) {
    const double v = (y + 0.5) / size - 0.5 - shift_y;
    for (int x = 0; x < size; ++x) {
      const double u = (x + 0.5) / size - 0.5 - shift_x;
      const float px = ((cos * u + sin * v) * sx + 0.5) * rgba.width - 0.5;
      const float py = ((cos * v - sin * u) * sy + 0.5) * rgba.height - 0.5;
      const int left = static_cast<int>(std::floor(px));
      const int top = static_cast<int>(std::floor(py));
      const float fx = px - left, fy = py - top;
      float colour[3] = {0, 0, 0}, covered = 0;
      for (int k = 0; k < 4; ++k) {
        const int cx = left + (k & 1), cy = top + (k >> 1);
        if (cx < 0 || cy < 0 || cx >= rgba.width || cy >= rgba.height) continue;
        const uint8_t* p = rgba.at(cy, cx);
        const float weight = ((k & 1) ? fx : 1 - fx) *
                             ((k >> 1) ? fy : 1 - fy) * (p[3] * (1.0f / 255));
        covered += weight;
        for (int c = 0; c < 3; ++c) colour[c] += weight * p[c];
      }
      for (int c = 0; c < 3; ++c) {
        const float value =
            std::clamp(gain[c] * (colour[c] + (1 - covered) * background[c]),
                       0.0f, 255.0f);
        out[c * plane + y * size + x] =
            (value * (1.0f / 255) - kClipMean[c]) / kClipStd[c];
      }
    }
  }
  return out;
}

}  // namespace mimo
