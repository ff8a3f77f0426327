#include "mimo/data/report/font.h"

#include <algorithm>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace mimo {
namespace {

// Rows from the top, of five dots, the left one worth 16.
constexpr uint8_t kGlyphs[95][kGlyphHeight] = {
    {0, 0, 0, 0, 0, 0, 0},         //
    {4, 4, 4, 4, 4, 0, 4},         // !
    {10, 10, 10, 0, 0, 0, 0},      // "
    {10, 10, 31, 10, 31, 10, 10},  // #
    {4, 15, 20, 14, 5, 30, 4},     // $
    {24, 25, 2, 4, 8, 19, 3},      // %
    {12, 18, 20, 8, 21, 18, 13},   // &
    {4, 4, 8, 0, 0, 0, 0},         // '
    {2, 4, 8, 8, 8, 4, 2},         // (
    {8, 4, 2, 2, 2, 4, 8},         // )
    {0, 4, 21, 14, 21, 4, 0},      // *
    {0, 4, 4, 31, 4, 4, 0},        // +
    {0, 0, 0, 0, 12, 4, 8},        // ,
    {0, 0, 0, 31, 0, 0, 0},        // -
    {0, 0, 0, 0, 0, 12, 12},       // .
    {0, 1, 2, 4, 8, 16, 0},        // /
    {14, 17, 19, 21, 25, 17, 14},  // 0
    {4, 12, 4, 4, 4, 4, 14},       // 1
    {14, 17, 1, 2, 4, 8, 31},      // 2
    {31, 2, 4, 2, 1, 17, 14},      // 3
    {2, 6, 10, 18, 31, 2, 2},      // 4
    {31, 16, 30, 1, 1, 17, 14},    // 5
    {6, 8, 16, 30, 17, 17, 14},    // 6
    {31, 1, 2, 4, 8, 8, 8},        // 7
    {14, 17, 17, 14, 17, 17, 14},  // 8
    {14, 17, 17, 15, 1, 2, 12},    // 9
    {0, 12, 12, 0, 12, 12, 0},     // :
    {0, 12, 12, 0, 12, 4, 8},      // ;
    {2, 4, 8, 16, 8, 4, 2},        // <
    {0, 0, 31, 0, 31, 0, 0},       // =
    {8, 4, 2, 1, 2, 4, 8},         // >
    {14, 17, 1, 2, 4, 0, 4},       // ?
    {14, 17, 1, 13, 21, 21, 14},   // @
    {14, 17, 17, 17, 31, 17, 17},  // A
    {30, 17, 17, 30, 17, 17, 30},  // B
    {14, 17, 16, 16, 16, 17, 14},  // C
    {28, 18, 17, 17, 17, 18, 28},  // D
    {31, 16, 16, 30, 16, 16, 31},  // E
    {31, 16, 16, 30, 16, 16, 16},  // F
    {14, 17, 16, 23, 17, 17, 15},  // G
    {17, 17, 17, 31, 17, 17, 17},  // H
    {14, 4, 4, 4, 4, 4, 14},       // I
    {7, 2, 2, 2, 2, 18, 12},       // J
    {17, 18, 20, 24, 20, 18, 17},  // K
    {16, 16, 16, 16, 16, 16, 31},  // L
    {17, 27, 21, 21, 17, 17, 17},  // M
    {17, 17, 25, 21, 19, 17, 17},  // N
    {14, 17, 17, 17, 17, 17, 14},  // O
    {30, 17, 17, 30, 16, 16, 16},  // P
    {14, 17, 17, 17, 21, 18, 13},  // Q
    {30, 17, 17, 30, 20, 18, 17},  // R
    {15, 16, 16, 14, 1, 1, 30},    // S
    {31, 4, 4, 4, 4, 4, 4},        // T
    {17, 17, 17, 17, 17, 17, 14},  // U
    {17, 17, 17, 17, 17, 10, 4},   // V
    {17, 17, 17, 21, 21, 21, 10},  // W
    {17, 17, 10, 4, 10, 17, 17},   // X
    {17, 17, 17, 10, 4, 4, 4},     // Y
    {31, 1, 2, 4, 8, 16, 31},      // Z
    {14, 8, 8, 8, 8, 8, 14},       // [
    {0, 16, 8, 4, 2, 1, 0},        // backslash
    {14, 2, 2, 2, 2, 2, 14},       // ]
    {4, 10, 17, 0, 0, 0, 0},       // ^
    {0, 0, 0, 0, 0, 0, 31},        // _
    {8, 4, 2, 0, 0, 0, 0},         // `
    {0, 0, 14, 1, 15, 17, 15},     // a
    {16, 16, 22, 25, 17, 17, 30},  // b
    {0, 0, 14, 16, 16, 17, 14},    // c
    {1, 1, 13, 19, 17, 17, 15},    // d
    {0, 0, 14, 17, 31, 16, 14},    // e
    {6, 9, 8, 28, 8, 8, 8},        // f
    {0, 15, 17, 17, 15, 1, 14},    // g
    {16, 16, 22, 25, 17, 17, 17},  // h
    {4, 0, 12, 4, 4, 4, 14},       // i
    {2, 0, 6, 2, 2, 18, 12},       // j
    {16, 16, 18, 20, 24, 20, 18},  // k
    {12, 4, 4, 4, 4, 4, 14},       // l
    {0, 0, 26, 21, 21, 17, 17},    // m
    {0, 0, 22, 25, 17, 17, 17},    // n
    {0, 0, 14, 17, 17, 17, 14},    // o
    {0, 0, 30, 17, 30, 16, 16},    // p
    {0, 0, 13, 19, 15, 1, 1},      // q
    {0, 0, 22, 25, 16, 16, 16},    // r
    {0, 0, 14, 16, 14, 1, 30},     // s
    {8, 8, 28, 8, 8, 9, 6},        // t
    {0, 0, 17, 17, 17, 19, 13},    // u
    {0, 0, 17, 17, 17, 10, 4},     // v
    {0, 0, 17, 17, 21, 21, 10},    // w
    {0, 0, 17, 10, 4, 10, 17},     // x
    {0, 0, 17, 17, 15, 1, 14},     // y
    {0, 0, 31, 2, 4, 8, 31},       // z
    {2, 4, 4, 8, 4, 4, 2},         // {
    {4, 4, 4, 4, 4, 4, 4},         // |
    {8, 4, 4, 2, 4, 4, 8},         // }
    {0, 0, 8, 21, 2, 0, 0},        // ~
};

// Bare letters of U+00C0 to U+017F (Latin-1 Supplement, Latin Extended-A); '?'
// where there is none.
constexpr std::string_view kBare =
    "AAAAAAACEEEEIIIIDNOOOOOxOUUUUYTsaaaaaaaceeeeiiiidnooooo/ouuuuyty"
    "AaAaAaCcCcCcCcDdDdEeEeEeEeEeGgGgGgGgHhHhIiIiIiIiIiIiJjKkkLlLlLlL"
    "lLlNnNnNnnNnOoOoOoOoRrRrRrSsSsSsSsTtTtTtUuUuUuUuUuUuWwYyYZzZzZzs";
static_assert(kBare.size() == 192);

}  // namespace

std::string ToAscii(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const uint8_t lead = text[i];
    const size_t bytes = lead < 0x80   ? 1
                         : lead < 0xe0 ? 2
                         : lead < 0xf0 ? 3
                                       : 4;
    uint32_t point = bytes == 1 ? lead : lead & (0x7f >> bytes);
    for (size_t k = 1; k < bytes && i + k < text.size(); ++k) {
      point = point << 6 | (text[i + k] & 0x3f);
    }
    i += bytes;
    if (point >= 0xc0 && point < 0xc0 + kBare.size()) {
      out += kBare[point - 0xc0];
    } else if (point == 0x2018 || point == 0x2019) {  // curly quotes
      out += '\'';
    } else if (point == '\n' || point == '\t') {
      out += ' ';
    } else {
      out += point >= 32 && point < 127 ? static_cast<char>(point) : '?';
    }
  }
  return out;
}

void DrawText(Image& rgb, int y, int x, std::string_view text, int scale,
              Rgb colour) {
  CHECK_EQ(rgb.channels, 3) << "DrawText";
  for (const char c : ToAscii(text)) {
    for (int dy = 0; dy < kGlyphHeight * scale; ++dy) {
      for (int dx = 0; dx < kGlyphWidth * scale; ++dx) {
        const int row = kGlyphs[c - 32][dy / scale];
        const bool dot = row >> (kGlyphWidth - 1 - dx / scale) & 1;
        const int py = y + dy, px = x + dx;
        if (dot && py >= 0 && px >= 0 && py < rgb.height && px < rgb.width) {
          std::copy(colour.begin(), colour.end(), rgb.at(py, px));
        }
      }
    }
    x += (kGlyphWidth + 1) * scale;
  }
}

std::vector<std::string> WrapText(std::string_view text, int columns) {
  CHECK_GT(columns, 0) << "WrapText";
  std::vector<std::string> lines;
  for (std::string_view word :
       absl::StrSplit(ToAscii(text), ' ', absl::SkipEmpty())) {
    if (!lines.empty() &&
        lines.back().size() + 1 + word.size() <= static_cast<size_t>(columns)) {
      absl::StrAppend(&lines.back(), " ", word);
      continue;
    }
    for (; !word.empty();
         word.remove_prefix(std::min<size_t>(word.size(), columns))) {
      lines.emplace_back(word.substr(0, columns));
    }
  }
  return lines;
}

}  // namespace mimo
