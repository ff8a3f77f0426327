#include "mimo/data/image/codec.h"

#include <cstdlib>
#include <filesystem>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mimo/data/file.h"
#include "mimo/data/image/pillow_golden.h"

namespace mimo {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kFixtures[] = "tests/fixtures/images/";

std::string Bytes(const std::string& name) {
  auto bytes = ReadFile(kFixtures + name);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.value_or("");
}

void ExpectOneLineError(const absl::Status& status, const std::string& what) {
  EXPECT_FALSE(status.ok()) << what;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(what), Not(HasSubstr("\n"))));
}

TEST(ReadImage, EveryFixture) {
  int read = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFixtures)) {
    const auto image = ReadImage(entry.path());
    EXPECT_TRUE(image.ok()) << image.status();
    read += image.ok();
  }
  EXPECT_EQ(read, 13);
}

TEST(DecodeImage, JpegAsPillow) {
  for (const auto& golden : pillow::kDecoded) {
    const auto image = DecodeImage(Bytes(golden.file), golden.file);
    ASSERT_TRUE(image.ok()) << image.status();
    ASSERT_EQ(image->channels, golden.channels);
    ASSERT_EQ(image->height, golden.height);
    ASSERT_EQ(image->width, golden.width);
    double sum[3] = {0, 0, 0};
    for (size_t i = 0; i < image->pixels.size(); ++i) {
      sum[i % 3] += image->pixels[i];
    }
    for (int c = 0; c < 3; ++c) {
      EXPECT_NEAR(sum[c] / (image->height * image->width), golden.mean[c], 0.05)
          << golden.file;
    }
  }
}

// Every number of channels survives writing and reading.
TEST(EncodePng, RoundTrip) {
  for (int channels = 1; channels <= 4; ++channels) {
    for (const auto& [height, width] : {std::pair{1, 1}, {7, 13}, {64, 1}}) {
      Image image(height, width, channels);
      uint32_t value = 12345;
      for (uint8_t& p : image.pixels) p = (value = value * 69069 + 1) >> 24;
      const auto back = DecodeImage(EncodePng(image), "memory");
      ASSERT_TRUE(back.ok()) << back.status();
      EXPECT_EQ(*back, image) << channels;
    }
  }
}

// A PNG of bit depth 1 / 2 / 4 / 16, palette or interlaced, written byte by
// byte: the encoder has no such options.
class PngBytes {
 public:
  PngBytes(int width, int height, int depth, int type, int interlace) {
    out_ = "\x89PNG\r\n\x1a\n";
    std::string head = Number(width) + Number(height);
    head += {char(depth), char(type), 0, 0, char(interlace)};
    Chunk("IHDR", head);
  }
  PngBytes& Chunk(const std::string& type, const std::string& data) {
    out_ += Number(data.size()) + type + data + Number(Crc(type + data));
    return *this;
  }
  // Rows, each with its filter byte, in one stored zlib block.
  PngBytes& Data(const std::string& rows) {
    uint32_t a = 1, b = 0;
    for (unsigned char c : rows) b = (b + (a = (a + c) % 65521)) % 65521;
    const uint16_t n = rows.size(), inverse = ~n;
    std::string zlib = {0x78,
                        0x01,
                        1,
                        char(n),
                        char(n >> 8),
                        char(inverse),
                        char(inverse >> 8)};
    return Chunk("IDAT", zlib + rows + Number(b << 16 | a));
  }
  std::string End() { return Chunk("IEND", "").out_; }

 private:
  static std::string Number(uint32_t n) {
    return {char(n >> 24), char(n >> 16), char(n >> 8), char(n)};
  }
  static uint32_t Crc(const std::string& bytes) {
    uint32_t crc = ~0u;
    for (unsigned char c : bytes) {
      crc ^= c;
      for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ (crc & 1) * 0xedb88320u;
    }
    return ~crc;
  }
  std::string out_;
};

TEST(DecodeImage, PngKinds) {
  using namespace std::string_literals;
  const auto pixels = [](const std::string& bytes) {
    const auto image = DecodeImage(bytes, "memory");
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? image->pixels : std::vector<uint8_t>{};
  };
  using Pixels = std::vector<uint8_t>;
  // One bit grey: 1 0 1 0 1.
  EXPECT_EQ(pixels(PngBytes(5, 1, 1, 0, 0).Data("\0\xa8"s).End()),
            (Pixels{255, 0, 255, 0, 255}));
  // Two and four bits.
  EXPECT_EQ(pixels(PngBytes(2, 1, 2, 0, 0).Data("\0\x60"s).End()),
            (Pixels{85, 170}));
  EXPECT_EQ(pixels(PngBytes(2, 1, 4, 0, 0).Data("\0\x1f"s).End()),
            (Pixels{17, 255}));
  // Sixteen bits: scaled, not cut (0x00ff -> 1).
  EXPECT_EQ(
      pixels(
          PngBytes(3, 1, 16, 0, 0).Data("\0\xff\xff\x00\xff\x80\x00"s).End()),
      (Pixels{255, 1, 128}));
  // Palette, the second colour clear.
  EXPECT_EQ(pixels(PngBytes(2, 1, 8, 3, 0)
                       .Chunk("PLTE", "\1\2\3\4\5\6"s)
                       .Chunk("tRNS", "\xff\0"s)
                       .Data("\0\0\1"s)
                       .End()),
            (Pixels{1, 2, 3, 255, 4, 5, 6, 0}));
  // Grey with a clear value.
  EXPECT_EQ(pixels(PngBytes(2, 1, 8, 0, 0)
                       .Chunk("tRNS", "\0\7"s)
                       .Data("\0\7\x08"s)
                       .End()),
            (Pixels{7, 0, 8, 255}));
  // Interlaced 2 x 2: passes 1 (0,0), 6 (0,1), 7 (row 1).
  EXPECT_EQ(pixels(PngBytes(2, 2, 8, 0, 1).Data("\0\1\0\2\0\3\4"s).End()),
            (Pixels{1, 2, 3, 4}));
}

TEST(DecodeImage, RefusesAbsurdSizes) {
  ExpectOneLineError(
      DecodeImage(PngBytes(100000, 100000, 8, 6, 0).Data("").End(), "bomb.png")
          .status(),
      "bomb.png: 100000 x 100000 pixels");
  ExpectOneLineError(
      DecodeImage(PngBytes(0, 5, 8, 6, 0).Data("").End(), "none.png").status(),
      "none.png: ");
}

// Whatever the place of the cut, an error and no crash.
TEST(DecodeImage, TruncatedAnywhere) {
  for (const char* name :
       {"sunflower_palette_odd.png", "red_apple.png", "rose_baseline.jpg",
        "car_progressive.jpg", "bag_gray.png"}) {
    const std::string bytes = Bytes(name);
    // A JPEG is whole without its two-byte end marker's last byte or so.
    for (size_t n = 0; n + 3 < bytes.size(); n += 1 + n / 16) {
      ExpectOneLineError(DecodeImage(bytes.substr(0, n), name).status(), name);
    }
  }
}

// Any damage gives a picture or a one-line error, never a crash (ASan looks
// on). PNG has checksums, so there damage in a critical chunk is always seen.
TEST(DecodeImage, DamagedAnywhere) {
  for (const char* name : {"sunflower_palette_odd.png", "rose_baseline.jpg",
                           "car_progressive.jpg"}) {
    const std::string bytes = Bytes(name);
    for (size_t i = 0; i < bytes.size(); i += 7) {
      std::string damaged = bytes;
      damaged[i] ^= 0x55;
      const auto image = DecodeImage(damaged, name);
      if (!image.ok()) ExpectOneLineError(image.status(), name);
    }
  }
  std::string png = Bytes("red_apple.png");
  png[png.size() / 2] ^= 1;
  ExpectOneLineError(DecodeImage(png, "x.png").status(),
                     "x.png: not a readable PNG");
}

TEST(ReadImage, WrongFiles) {
  ExpectOneLineError(ReadImage("no/such.png").status(),
                     "no/such.png: no such file");
  ExpectOneLineError(ReadImage("tests/fixtures").status(),
                     "tests/fixtures: a directory");
  ExpectOneLineError(DecodeImage("", "a.png").status(), "a.png: an empty file");
  ExpectOneLineError(DecodeImage("GIF89a", "a.gif").status(),
                     "a.gif: neither a PNG nor a JPEG");
}

TEST(WritePng, SaysWhyItCannot) {
  const std::string folder = std::string(getenv("TEST_TMPDIR")) + "/made/here";
  EXPECT_TRUE(WritePng(folder + "/a.png", Image(2, 2, 3)).ok());
  EXPECT_TRUE(ReadImage(folder + "/a.png").ok());
  ExpectOneLineError(WritePng(folder, Image(2, 2, 3)), folder);
  ExpectOneLineError(WritePng(folder + "/a.png/b.png", Image(2, 2, 3)),
                     "a.png/b.png: cannot write");
  // No remains of the failed ones.
  int files = 0;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator(folder)) {
    ++files;
  }
  EXPECT_EQ(files, 1);
}

}  // namespace
}  // namespace mimo
