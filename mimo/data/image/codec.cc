#include "mimo/data/image/codec.h"

#include <png.h>
// jpeglib.h uses FILE and size_t without including them.
#include <jerror.h>
#include <jpeglib.h>
#include <stdio.h>

#include <csetjmp>
#include <cstring>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/file.h"

// Both libraries report errors by longjmp. What must be freed lives in objects
// of the frame below the one that calls setjmp, so that a jump skips no
// destructor.
namespace mimo {
namespace {

constexpr std::string_view kPngMagic("\x89PNG\r\n\x1a\n", 8);
constexpr std::string_view kJpegMagic("\xff\xd8\xff", 3);

absl::Status CheckSize(int64_t height, int64_t width) {
  if (height > 0 && width > 0 && height <= kMaxPixels / width) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      width, " x ", height, " pixels, wanted 1 to ", kMaxPixels, " in all"));
}

struct PngReader {
  std::string_view rest;
  std::string error;
  png_structp png = nullptr;
  png_infop info = nullptr;
  Image image;
  std::vector<png_bytep> rows;
  absl::Status size_error;

  PngReader() {
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, OnError, OnWarn);
    CHECK(png != nullptr) << "libpng: cannot be set up";
    info = png_create_info_struct(png);
    CHECK(info != nullptr) << "libpng: cannot be set up";
    png_set_read_fn(png, this, OnRead);
  }
  PngReader(const PngReader&) = delete;
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }

  [[noreturn]] static void OnError(png_structp png, png_const_charp message) {
    static_cast<PngReader*>(png_get_error_ptr(png))->error = message;
    longjmp(png_jmpbuf(png), 1);
  }
  static void OnWarn(png_structp, png_const_charp) {}
  static void OnRead(png_structp png, png_bytep out, size_t size) {
    auto* reader = static_cast<PngReader*>(png_get_io_ptr(png));
    if (size > reader->rest.size()) png_error(png, "the file is cut short");
    std::memcpy(out, reader->rest.data(), size);
    reader->rest.remove_prefix(size);
  }

  void Prepare() {
    image = Image(png_get_image_height(png, info),
                  png_get_image_width(png, info), png_get_channels(png, info));
    for (int y = 0; y < image.height; ++y) rows.push_back(image.at(y, 0));
  }

  // Fills `image`; false with a message in `error`.
  bool Read() {
    if (setjmp(png_jmpbuf(png))) return false;
    png_read_info(png, info);
    size_error = CheckSize(png_get_image_height(png, info),
                           png_get_image_width(png, info));
    if (!size_error.ok()) return false;
    png_set_scale_16(png);
    png_set_expand(png);  // palette, fewer than 8 bits, transparent colour
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    Prepare();
    png_read_image(png, rows.data());
    png_read_end(png, nullptr);
    return true;
  }
};

struct JpegReader {
  jpeg_error_mgr errors;
  std::jmp_buf jump;
  std::string error;
  jpeg_decompress_struct jpeg;
  Image image;
  absl::Status size_error;

  JpegReader() {
    jpeg.err = jpeg_std_error(&errors);
    errors.error_exit = OnError;
    errors.emit_message = OnMessage;
    jpeg.client_data = this;
    jpeg_create_decompress(&jpeg);
  }
  JpegReader(const JpegReader&) = delete;
  ~JpegReader() { jpeg_destroy_decompress(&jpeg); }

  [[noreturn]] static void OnError(j_common_ptr common) {
    auto* reader = static_cast<JpegReader*>(common->client_data);
    char message[JMSG_LENGTH_MAX];
    common->err->format_message(common, message);
    reader->error = message;
    longjmp(reader->jump, 1);
  }
  // Damaged data is only a warning to libjpeg (level -1), which then invents
  // pixels; here it is an error unless the pixels do not depend on it.
  static void OnMessage(j_common_ptr common, int level) {
    if (level >= 0) return;
    switch (common->err->msg_code) {
      case JWRN_ADOBE_XFORM:
      case JWRN_BOGUS_ICC:
      case JWRN_EXTRANEOUS_DATA:
      case JWRN_JFIF_MAJOR:
        return;
      case JWRN_JPEG_EOF:
        static_cast<JpegReader*>(common->client_data)->error =
            "the file is cut short";
        longjmp(static_cast<JpegReader*>(common->client_data)->jump, 1);
    }
    OnError(common);
  }

  void Prepare() {
    image =
        Image(jpeg.output_height, jpeg.output_width, jpeg.output_components);
  }

  bool Read(std::string_view bytes) {
    if (setjmp(jump)) return false;
    jpeg_mem_src(&jpeg, reinterpret_cast<const unsigned char*>(bytes.data()),
                 bytes.size());
    jpeg_read_header(&jpeg, TRUE);
    size_error = CheckSize(jpeg.image_height, jpeg.image_width);
    if (!size_error.ok()) return false;
    if (jpeg.jpeg_color_space == JCS_YCCK) jpeg.out_color_space = JCS_CMYK;
    jpeg_start_decompress(&jpeg);
    Prepare();
    while (jpeg.output_scanline < jpeg.output_height) {
      JSAMPROW row = image.at(jpeg.output_scanline, 0);
      jpeg_read_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_decompress(&jpeg);
    return true;
  }
};

// Ink to light. Adobe writes CMYK inverted: 255 is no ink.
Image CmykToRgb(const Image& cmyk, bool inverted) {
  Image rgb(cmyk.height, cmyk.width, 3);
  for (size_t i = 0; i < cmyk.pixels.size() / 4; ++i) {
    const uint8_t* in = &cmyk.pixels[4 * i];
    for (int c = 0; c < 3; ++c) {
      const int colour = inverted ? in[c] : 255 - in[c];
      const int black = inverted ? in[3] : 255 - in[3];
      rgb.pixels[3 * i + c] = static_cast<uint8_t>(colour * black / 255);
    }
  }
  return rgb;
}

absl::Status BadImage(const std::string& name, std::string_view kind,
                      const absl::Status& size, std::string_view error) {
  if (!size.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", size.message()));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": not a readable ", kind, ": ", error));
}

}  // namespace

absl::StatusOr<Image> DecodeImage(std::string_view bytes,
                                  const std::string& name) {
  if (bytes.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": an empty file, wanted a PNG or JPEG picture"));
  }
  if (bytes.starts_with(kPngMagic)) {
    PngReader reader;
    reader.rest = bytes;
    if (!reader.Read()) {
      return BadImage(name, "PNG", reader.size_error, reader.error);
    }
    return std::move(reader.image);
  }
  if (bytes.starts_with(kJpegMagic)) {
    JpegReader reader;
    if (!reader.Read(bytes)) {
      return BadImage(name, "JPEG", reader.size_error, reader.error);
    }
    if (reader.image.channels == 4) {
      return CmykToRgb(reader.image, reader.jpeg.saw_Adobe_marker);
    }
    return std::move(reader.image);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": neither a PNG nor a JPEG picture"));
}

absl::StatusOr<Image> ReadImage(const std::string& path) {
  MIMO_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  return DecodeImage(bytes, path);
}

std::string EncodePng(const Image& image) {
  constexpr int kFormats[] = {0, PNG_FORMAT_GRAY, PNG_FORMAT_GA, PNG_FORMAT_RGB,
                              PNG_FORMAT_RGBA};
  CHECK(image.channels >= 1 && image.channels <= 4) << image.channels;
  png_image header = {};
  header.version = PNG_IMAGE_VERSION;
  header.width = image.width;
  header.height = image.height;
  header.format = kFormats[image.channels];
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(header);
  std::string bytes(size, '\0');
  CHECK(png_image_write_to_memory(&header, bytes.data(), &size, 0,
                                  image.pixels.data(), 0, nullptr))
      << header.message;
  bytes.resize(size);
  return bytes;
}

absl::Status WritePng(const std::string& path, const Image& image) {
  return WriteFile(path, EncodePng(image));
}

}  // namespace mimo
