#include "mimo/data/image/image.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/log/check.h"

namespace mimo {
namespace {

// v / 255, rounded (exact up to 255 * 255).
int Div255(int v) {
  v += 128;
  return ((v >> 8) + v) >> 8;
}

// Weights of the input pixels under each output pixel of one axis.
struct ResizeWeights {
  struct Span {
    int begin, count;
  };
  std::vector<Span> spans;   // [out]
  std::vector<int> weights;  // [out, taps] fixed point
  int taps;                  // the longest span
};
constexpr int kPrecision = 32 - 8 - 2;  // of weights: sums fit 32 bits

double Bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

ResizeWeights MakeWeights(int in, int out) {
  const double scale = static_cast<double>(in) / out;
  const double stretch = std::max(scale, 1.0);
  const double support = 2 * stretch;
  ResizeWeights w;
  w.taps = static_cast<int>(std::ceil(support)) * 2 + 1;
  w.weights.assign(static_cast<size_t>(out) * w.taps, 0);
  std::vector<double> exact(w.taps);
  for (int o = 0; o < out; ++o) {
    const double center = (o + 0.5) * scale;
    const int begin = std::max(0, static_cast<int>(center - support + 0.5));
    const int end = std::min(in, static_cast<int>(center + support + 0.5));
    double sum = 0;
    for (int i = begin; i < end; ++i) {
      exact[i - begin] = Bicubic((i - center + 0.5) / stretch);
      sum += exact[i - begin];
    }
    for (int i = 0; i < end - begin; ++i) {
      const double value = exact[i] / sum * (1 << kPrecision);
      w.weights[static_cast<size_t>(o) * w.taps + i] =
          static_cast<int>(value < 0 ? value - 0.5 : value + 0.5);
    }
    w.spans.push_back({begin, end - begin});
  }
  return w;
}

// in [outer, n, inner] -> out [outer, weights.spans.size(), inner].
void ResizeAxis(const uint8_t* in, int outer, int n, int inner,
                const ResizeWeights& w, uint8_t* out) {
  for (int b = 0; b < outer; ++b, in += static_cast<size_t>(n) * inner) {
    for (size_t o = 0; o < w.spans.size(); ++o) {
      const auto [begin, count] = w.spans[o];
      const int* weights = &w.weights[o * w.taps];
      for (int c = 0; c < inner; ++c) {
        int sum = 1 << (kPrecision - 1);
        const uint8_t* p = in + static_cast<size_t>(begin) * inner + c;
        for (int i = 0; i < count; ++i, p += inner) sum += *p * weights[i];
        *out++ = static_cast<uint8_t>(std::clamp(sum >> kPrecision, 0, 255));
      }
    }
  }
}

void Premultiply(Image& image) {
  const int colours = image.channels - 1;
  for (uint8_t* p = image.pixels.data();
       p != image.pixels.data() + image.pixels.size(); p += image.channels) {
    for (int c = 0; c < colours; ++c) p[c] = Div255(p[c] * p[colours]);
  }
}

void Unpremultiply(Image& image) {
  const int colours = image.channels - 1;
  for (uint8_t* p = image.pixels.data();
       p != image.pixels.data() + image.pixels.size(); p += image.channels) {
    const int alpha = p[colours];
    if (alpha == 0 || alpha == 255) continue;
    for (int c = 0; c < colours; ++c) p[c] = std::min(255, 255 * p[c] / alpha);
  }
}

}  // namespace

Image CompositeOnBackground(const Image& image, Rgb background) {
  if (image.channels == 3) return image;
  Image out(image.height, image.width, 3);
  const bool grey = image.channels < 3;
  const uint8_t* in = image.pixels.data();
  for (size_t i = 0; i < out.pixels.size(); i += 3, in += image.channels) {
    const int alpha = image.has_alpha() ? in[image.channels - 1] : 255;
    for (int c = 0; c < 3; ++c) {
      out.pixels[i + c] =
          Div255(in[grey ? 0 : c] * alpha + background[c] * (255 - alpha));
    }
  }
  return out;
}

Image ToRgba(const Image& image) {
  Image out(image.height, image.width, 4);
  const bool grey = image.channels < 3;
  const uint8_t* in = image.pixels.data();
  for (size_t i = 0; i < out.pixels.size(); i += 4, in += image.channels) {
    for (int c = 0; c < 3; ++c) out.pixels[i + c] = in[grey ? 0 : c];
    out.pixels[i + 3] = image.has_alpha() ? in[image.channels - 1] : 255;
  }
  return out;
}

Image Crop(const Image& image, int top, int left, int height, int width) {
  Image out(height, width, image.channels);
  const int x0 = std::max(0, -left);
  const int x1 = std::min(width, image.width - left);
  if (x1 <= x0) return out;
  for (int y = std::max(0, -top); y < std::min(height, image.height - top);
       ++y) {
    std::memcpy(out.at(y, x0), image.at(top + y, left + x0),
                static_cast<size_t>(x1 - x0) * image.channels);
  }
  return out;
}

Image CenterCrop(const Image& image, int height, int width) {
  const auto half = [](int n) { return n >= 0 ? n / 2 : -((1 - n) / 2); };
  return Crop(image, half(image.height - height), half(image.width - width),
              height, width);
}

Image ResizeBicubic(const Image& image, int height, int width) {
  CHECK(image.height > 0 && image.width > 0 && height > 0 && width > 0)
      << "ResizeBicubic of an empty picture";
  Image in = image;
  if (height == in.height && width == in.width) return in;
  if (in.has_alpha()) Premultiply(in);
  if (width != in.width) {
    Image out(in.height, width, in.channels);
    ResizeAxis(in.pixels.data(), in.height, in.width, in.channels,
               MakeWeights(in.width, width), out.pixels.data());
    in = std::move(out);
  }
  if (height != in.height) {
    Image out(height, width, in.channels);
    ResizeAxis(in.pixels.data(), 1, in.height, width * in.channels,
               MakeWeights(in.height, height), out.pixels.data());
    in = std::move(out);
  }
  if (in.has_alpha()) Unpremultiply(in);
  return in;
}

}  // namespace mimo
