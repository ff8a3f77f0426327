#include "mimo/data/fashion_mnist.h"

#include <zlib.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/file.h"

namespace mimo {
namespace {

constexpr const char* kAnswers[] = {
    "A T-shirt.", "Trousers.", "A pullover.", "A dress.", "A coat.",
    "A sandal.",  "A shirt.",  "A sneaker.",  "A bag.",   "An ankle boot."};

// A gzip file of at most `limit` bytes.
absl::StatusOr<std::string> ReadGzip(const std::string& path, size_t limit) {
  MIMO_ASSIGN_OR_RETURN(const std::string packed, ReadFile(path));
  std::string out(limit, '\0');
  z_stream stream = {};
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = packed.size();
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = out.size();
  constexpr int kGzip = 16 + MAX_WBITS;
  int code = inflateInit2(&stream, kGzip);
  if (code == Z_OK) code = inflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  inflateEnd(&stream);
  if (code != Z_STREAM_END) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": not a whole gzip file of at most ", limit, " bytes"));
  }
  return out;
}

// The data of an IDX file of bytes with these dimensions (0: any), which are
// filled in. Source: yann.lecun.com/exdb/mnist, "the IDX file format".
absl::StatusOr<std::string> ReadIdx(const std::string& path,
                                    std::vector<size_t>& dims) {
  MIMO_ASSIGN_OR_RETURN(std::string bytes, ReadGzip(path, size_t{1} << 26));
  const auto number = [&](size_t at) {
    size_t n = 0;
    for (size_t i = 0; i < 4; ++i) n = n << 8 | uint8_t(bytes[at + i]);
    return n;
  };
  const size_t head = 4 + 4 * dims.size();
  bool right = bytes.size() >= head && number(0) == (0x800 | dims.size());
  size_t size = 1;
  for (size_t d = 0; right && d < dims.size(); ++d) {
    const size_t n = number(4 + 4 * d);
    right = (dims[d] == 0 || dims[d] == n) && n > 0 && n < 1 << 20;
    size *= dims[d] = n;
  }
  if (!right || bytes.size() != head + size) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not an IDX file of Fashion-MNIST"));
  }
  return bytes.substr(head);
}

}  // namespace

absl::StatusOr<std::vector<Conversation>> ReadFashionMnist(
    bool train, const std::string& folder) {
  const std::string stem = absl::StrCat(folder, "/", train ? "train" : "t10k");
  std::vector<size_t> image_dims = {0, 28, 28};
  MIMO_ASSIGN_OR_RETURN(
      const std::string images,
      ReadIdx(absl::StrCat(stem, "-images-idx3-ubyte.gz"), image_dims));
  std::vector<size_t> label_dims = {image_dims[0]};
  const std::string label_path = absl::StrCat(stem, "-labels-idx1-ubyte.gz");
  MIMO_ASSIGN_OR_RETURN(const std::string labels,
                        ReadIdx(label_path, label_dims));
  std::vector<Conversation> out(image_dims[0]);
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t label = static_cast<uint8_t>(labels[i]);
    if (label >= std::size(kAnswers)) {
      return absl::InvalidArgumentError(
          absl::StrCat(label_path, ": label ", label, ", wanted less than 10"));
    }
    auto image = std::make_shared<Image>(28, 28, 1);
    std::copy_n(images.begin() + i * 28 * 28, 28 * 28, image->pixels.begin());
    out[i].id = absl::StrCat(train ? "train-" : "t10k-", i);
    out[i].pictures = {{out[i].id, std::move(image)}};
    out[i].turns = {{"<image>\nWhat is this?", kAnswers[label], "garment"}};
  }
  return out;
}

}  // namespace mimo
