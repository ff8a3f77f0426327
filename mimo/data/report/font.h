// Letters for pictures: printable ASCII in 5 x 7 dots, drawn for mimo.
#ifndef MIMO_MIMO_DATA_REPORT_FONT_H_
#define MIMO_MIMO_DATA_REPORT_FONT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "mimo/data/image/image.h"

namespace mimo {

inline constexpr int kGlyphWidth = 5, kGlyphHeight = 7;

// Draws `text` with its upper left corner at (y, x), `scale` pixels a dot; what
// is outside the picture is left out. A character takes 6 x scale pixels. UTF-8
// letters of Latin scripts lose their accents, other characters become '?'.
void DrawText(Image& rgb, int y, int x, std::string_view text, int scale,
              Rgb colour);

// Lines of at most `columns` characters; a word longer than that is broken.
std::vector<std::string> WrapText(std::string_view text, int columns);

// `text` in printable ASCII, one byte a character.
std::string ToAscii(std::string_view text);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_REPORT_FONT_H_
