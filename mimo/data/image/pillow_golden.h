// Made by tools/make_image_goldens.py with Pillow; not edited by hand.
#ifndef MIMO_MIMO_DATA_IMAGE_PILLOW_GOLDEN_H_
#define MIMO_MIMO_DATA_IMAGE_PILLOW_GOLDEN_H_

#include <cstdint>

namespace mimo::pillow {

// zlib's crc32 of the pixels of `file` resized to height x width.
struct Resized {
  const char* file;
  int channels, height, width;
  uint32_t crc;
};
inline constexpr Resized kResized[] = {
    {"flag_it.png", 4, 48, 64, 0x3ca1969c},
    {"flag_it.png", 4, 1, 1, 0x4d783b87},
    {"flag_it.png", 4, 5, 7, 0x073880f0},
    {"flag_it.png", 4, 33, 16, 0xe2303612},
    {"flag_it.png", 4, 97, 101, 0x90c7dc8d},
    {"flag_it.png", 4, 24, 300, 0x8381a46f},
    {"flag_it.png", 4, 200, 3, 0xbb09b08d},
    {"flag_it.png", 4, 48, 64, 0x3ca1969c},
    {"red_apple.png", 4, 48, 64, 0xd1164d03},
    {"red_apple.png", 4, 1, 1, 0x37668d9a},
    {"red_apple.png", 4, 5, 7, 0xb5f43afb},
    {"red_apple.png", 4, 33, 16, 0xf22a8a7d},
    {"red_apple.png", 4, 97, 101, 0x85b5ed51},
    {"red_apple.png", 4, 24, 300, 0xb3678a8e},
    {"red_apple.png", 4, 200, 3, 0x7d33a0fa},
    {"red_apple.png", 4, 72, 72, 0xd15dd6a9},
    {"sneaker_gray.png", 1, 48, 64, 0xfe9523cc},
    {"sneaker_gray.png", 1, 1, 1, 0x77085ae6},
    {"sneaker_gray.png", 1, 5, 7, 0xc37f0a0a},
    {"sneaker_gray.png", 1, 33, 16, 0x6b6d5c9c},
    {"sneaker_gray.png", 1, 97, 101, 0x0ff0a7f3},
    {"sneaker_gray.png", 1, 24, 300, 0xbd8a46a7},
    {"sneaker_gray.png", 1, 200, 3, 0x6d66244c},
    {"sneaker_gray.png", 1, 28, 28, 0xd7a660eb},
    {"sunflower_palette_odd.png", 4, 48, 64, 0x652b09b7},
    {"sunflower_palette_odd.png", 4, 1, 1, 0x9ac7abb7},
    {"sunflower_palette_odd.png", 4, 5, 7, 0xf7f73bc4},
    {"sunflower_palette_odd.png", 4, 33, 16, 0x29442294},
    {"sunflower_palette_odd.png", 4, 97, 101, 0xe2ab0131},
    {"sunflower_palette_odd.png", 4, 24, 300, 0x72a5553e},
    {"sunflower_palette_odd.png", 4, 200, 3, 0x15fc1d73},
    {"sunflower_palette_odd.png", 4, 57, 33, 0x5bd5556c},
};

// JPEG: decoders may differ by a rounding, so means of the channels.
struct Decoded {
  const char* file;
  int channels, height, width;
  double mean[3];
};
inline constexpr Decoded kDecoded[] = {
    {"rose_baseline.jpg", 3, 72, 72, {225.1570, 165.6497, 166.4610}},
    {"car_progressive.jpg", 3, 56, 80, {223.1487, 176.3752, 178.3904}},
};

// CLIPImageProcessor's result: its sum and first and last value.
struct Clip {
  const char* file;
  int size;
  double sum, first, last;
};
inline constexpr Clip kClip[] = {
    {"flag_br.png", 32, 1534.64377, 1.930336, 2.145897},
    {"flag_br.png", 30, 1371.96070, 1.930336, 2.145897},
    {"flag_br.png", 56, 4752.71762, 1.930336, 2.145897},
    {"flag_jp.png", 32, 4476.21371, 1.930336, 2.145897},
    {"flag_jp.png", 30, 3923.34606, 1.930336, 2.145897},
    {"flag_jp.png", 56, 13708.18550, 1.930336, 2.145897},
};

}  // namespace mimo::pillow

#endif  // MIMO_MIMO_DATA_IMAGE_PILLOW_GOLDEN_H_
