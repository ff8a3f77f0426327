#include "mimo/data/flags/colours.h"

#include <algorithm>
#include <array>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace mimo {
namespace {

constexpr std::array kNames = {"black", "blue",  "green", "orange",
                               "red",   "white", "yellow"};
enum class Colour {
  kBlack,
  kBlue,
  kGreen,
  kOrange,
  kRed,
  kWhite,
  kYellow,
  kNone
};

// Hue first, so that a dark navy is blue; grey (shading, edges) is no colour.
Colour Classify(const uint8_t* rgba) {
  using enum Colour;
  if (rgba[3] < 200) return kNone;
  const double r = rgba[0] / 255.0, g = rgba[1] / 255.0, b = rgba[2] / 255.0;
  const double value = std::max({r, g, b});
  const double chroma = value - std::min({r, g, b});
  if (value < 0.12) return kBlack;
  if (chroma < 0.22 * value) {
    return value > 0.62 ? kWhite : value < 0.28 ? kBlack : kNone;
  }
  if (chroma < 0.4 * value && value < 0.35) return kBlack;
  double hue = value == r   ? (g - b) / chroma
               : value == g ? 2 + (b - r) / chroma
                            : 4 + (r - g) / chroma;
  hue = 60 * (hue < 0 ? hue + 6 : hue);  // degrees
  return hue < 11    ? kRed
         : hue < 38  ? kOrange
         : hue < 70  ? kYellow
         : hue < 178 ? kGreen
         : hue < 280 ? kBlue
                     : kRed;
}

}  // namespace

std::vector<std::string> FlagColours(const Image& rgba) {
  CHECK_EQ(rgba.channels, 4) << "FlagColours";
  std::vector<Colour> colour;
  for (size_t i = 0; i < rgba.pixels.size(); i += 4) {
    colour.push_back(Classify(&rgba.pixels[i]));
  }
  // A pixel between two other colours is their mixture, and of no colour.
  const auto between = [](Colour a, Colour c, Colour b) {
    return a != c && b != c && a != b;
  };
  std::array<int, kNames.size()> count = {};
  int all = 0;
  const int width = rgba.width;
  for (int y = 1; y + 1 < rgba.height; ++y) {
    for (int x = 1; x + 1 < width; ++x) {
      const Colour* c = &colour[y * width + x];
      if (*c == Colour::kNone || between(c[-1], *c, c[1]) ||
          between(c[-width], *c, c[width])) {
        continue;
      }
      ++count[static_cast<int>(*c)];
      ++all;
    }
  }
  std::array<int, kNames.size()> order;
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return count[a] > count[b]; });
  std::vector<std::string> names;
  for (size_t i = 0; i < order.size(); ++i) {
    const int n = count[order[i]];
    if (n > 0 && (i < 2 || n >= 0.055 * all)) names.push_back(kNames[order[i]]);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string ColourList(const std::vector<std::string>& colours) {
  if (colours.size() < 2) return absl::StrJoin(colours, "");
  return absl::StrCat(absl::StrJoin(colours.begin(), colours.end() - 1, ", "),
                      " and ", colours.back());
}

}  // namespace mimo
