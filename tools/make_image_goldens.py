#!/usr/bin/env python3
"""Writes mimo/data/image/pillow_golden.h: what Pillow makes of the fixtures.

Pillow 11 or 12: 13 sometimes takes the rows before the columns, which changes
roundings. Run from the repository's root with Pillow and numpy installed:
  python3 tools/make_image_goldens.py > mimo/data/image/pillow_golden.h
"""
import zlib

import numpy as np
from PIL import Image

FIXTURES = "tests/fixtures/images/"
PNGS = ["flag_it", "red_apple", "sneaker_gray", "sunflower_palette_odd"]
SIZES = [(48, 64), (1, 1), (5, 7), (33, 16), (97, 101), (24, 300), (200, 3)]
JPEGS = ["rose_baseline", "car_progressive"]
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def crc(image):
    return f"0x{zlib.crc32(image.tobytes()):08x}"


def clip(image, size):
    """Steps of transformers' CLIPImageProcessor: 3 x size x size floats."""
    width, height = image.size
    short = min(width, height)
    edge = lambda n: size if n == short else int(size * n / short)
    image = image.resize((edge(width), edge(height)), Image.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    pixels = np.asarray(image)[top : top + size, left : left + size]
    pixels = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)


print("// Made by tools/make_image_goldens.py with Pillow; not edited by hand.")
print("#ifndef MIMO_MIMO_DATA_IMAGE_PILLOW_GOLDEN_H_")
print("#define MIMO_MIMO_DATA_IMAGE_PILLOW_GOLDEN_H_\n")
print("#include <cstdint>\n")
print("namespace mimo::pillow {\n")
print("// zlib's crc32 of the pixels of `file` resized to height x width.")
print("struct Resized {\n  const char* file;\n  int channels, height, width;")
print("  uint32_t crc;\n};")
print("inline constexpr Resized kResized[] = {")
for name in PNGS:
    image = Image.open(f"{FIXTURES}{name}.png")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    for height, width in SIZES + [(image.height, image.width)]:
        out = image.resize((width, height), Image.BICUBIC)
        channels = len(image.getbands())
        print(f'    {{"{name}.png", {channels}, {height}, {width}, {crc(out)}}},')
print("};\n")
print("// JPEG: decoders may differ by a rounding, so means of the channels.")
print("struct Decoded {\n  const char* file;\n  int channels, height, width;")
print("  double mean[3];\n};")
print("inline constexpr Decoded kDecoded[] = {")
for name in JPEGS:
    image = Image.open(f"{FIXTURES}{name}.jpg").convert("RGB")
    mean = np.asarray(image).astype(float).mean((0, 1))
    means = ", ".join(f"{m:.4f}" for m in mean)
    print(f'    {{"{name}.jpg", 3, {image.height}, {image.width},')
    print(f"     {{{means}}}}},")
print("};\n")
print("// CLIPImageProcessor's result: its sum and first and last value.")
print("struct Clip {\n  const char* file;\n  int size;")
print("  double sum, first, last;\n};")
print("inline constexpr Clip kClip[] = {")
for name in ["flag_br", "flag_jp"]:
    for size in [32, 30, 56]:
        image = Image.open(f"{FIXTURES}{name}.png").convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        out = clip(white, size)
        total = out.astype(np.float64).sum()
        print(f'    {{"{name}.png", {size}, {total:.5f}, '
              f"{out[0, 0, 0]:.6f}, {out[2, -1, -1]:.6f}}},")
print("};\n")
print("}  // namespace mimo::pillow\n")
print("#endif  // MIMO_MIMO_DATA_IMAGE_PILLOW_GOLDEN_H_")
