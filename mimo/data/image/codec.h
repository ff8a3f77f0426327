// PNG and JPEG files in, PNG files out.
#ifndef MIMO_MIMO_DATA_IMAGE_CODEC_H_
#define MIMO_MIMO_DATA_IMAGE_CODEC_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mimo/data/image/image.h"

namespace mimo {

// Pictures of more pixels are refused: 64 Mi, 8192 x 8192.
inline constexpr int64_t kMaxPixels = int64_t{1} << 26;

// PNG of every kind (palette and 1, 2, 4, 16 bits become 8-bit channels, a
// transparent colour becomes alpha) or JPEG (grey, RGB, CMYK made RGB), told
// apart by their first bytes. Colour profiles, gamma and EXIF rotation are not
// applied. A file that is cut short or damaged is an InvalidArgument error.
absl::StatusOr<Image> ReadImage(const std::string& path);

// The same of bytes in memory; errors begin with `name`.
absl::StatusOr<Image> DecodeImage(std::string_view bytes,
                                  const std::string& name);

std::string EncodePng(const Image& image);
absl::Status WritePng(const std::string& path, const Image& image);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_IMAGE_CODEC_H_
