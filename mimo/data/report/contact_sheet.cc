#include "mimo/data/report/contact_sheet.h"

#include <algorithm>

namespace mimo {
namespace {

constexpr Rgb kPage = {255, 255, 255}, kInk = {32, 32, 32},
              kGrey = {112, 112, 112}, kGreen = {0, 128, 48},
              kRed = {200, 24, 24}, kLine = {216, 216, 216},
              kClear = {236, 236, 236};  // behind a picture's alpha
constexpr int kScale = 2;                // pixels a dot of the font
constexpr int kMargin = 8;
constexpr int kLineHeight = (kGlyphHeight + 3) * kScale;

void Fill(Image& page, int y, int x, int height, int width, Rgb colour) {
  for (int r = std::max(0, y); r < std::min(page.height, y + height); ++r) {
    for (int c = std::max(0, x); c < std::min(page.width, x + width); ++c) {
      std::copy(colour.begin(), colour.end(), page.at(r, c));
    }
  }
}

void Paste(Image& page, int y, int x, const Image& picture, int edge) {
  const int longest = std::max(picture.height, picture.width);
  const Image rgb = CompositeOnBackground(
      ResizeBicubic(picture, std::max(1, picture.height * edge / longest),
                    std::max(1, picture.width * edge / longest)),
      kClear);
  const int top = y + (edge - rgb.height) / 2;
  const int left = x + (edge - rgb.width) / 2;
  for (int r = 0; r < rgb.height; ++r) {
    for (int c = 0; c < rgb.width; ++c) {
      std::copy_n(rgb.at(r, c), 3, page.at(top + r, left + c));
    }
  }
}

void DrawCell(Image& page, int y, int x, const ContactCell& cell,
              const ContactSheetOptions& options) {
  const Rgb mark = cell.right() ? kGreen : kRed;
  Fill(page, y + options.cell_height - 1, x, 1, options.cell_width, kLine);
  Fill(page, y + kMargin / 2, x, options.cell_height - kMargin, 3, mark);
  Paste(page, y + (options.cell_height - options.picture_edge) / 2, x + kMargin,
        cell.picture, options.picture_edge);
  const int text_x = x + options.picture_edge + 2 * kMargin;
  const int columns = (x + options.cell_width - text_x - kMargin / 2) /
                      ((kGlyphWidth + 1) * kScale);
  int text_y = y + kMargin;
  const auto write = [&](const std::string& text, Rgb colour) {
    for (const std::string& line : WrapText(text, columns)) {
      if (text_y + kLineHeight > y + options.cell_height) return;
      DrawText(page, text_y, text_x, line, kScale, colour);
      text_y += kLineHeight;
    }
  };
  write(cell.question, kGrey);
  write(cell.answer.empty() ? "(nothing)" : cell.answer, mark);
  if (!cell.right()) write("truth: " + cell.wanted, kInk);
}

}  // namespace

Image DrawContactSheet(const std::string& title,
                       const std::vector<ContactCell>& cells,
                       const ContactSheetOptions& options) {
  const int head = kMargin + kLineHeight;
  const int rows = (cells.size() + options.columns - 1) / options.columns;
  Image page(head + rows * options.cell_height + kMargin,
             options.columns * options.cell_width + 2 * kMargin, 3);
  Fill(page, 0, 0, page.height, page.width, kPage);
  DrawText(page, kMargin, kMargin, title, kScale, kInk);
  for (size_t i = 0; i < cells.size(); ++i) {
    DrawCell(page, head + i / options.columns * options.cell_height,
             kMargin + i % options.columns * options.cell_width, cells[i],
             options);
  }
  return page;
}

}  // namespace mimo
