#include "mimo/train/tensors_source.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/convert.h"

namespace mimo {
namespace {

absl::Status Wrong(const std::string& path, absl::string_view name,
                   const std::string& found, absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": ", name, ": ", found, ", wanted ", wanted));
}

// Rows [begin, end) of ids [B, S].
absl::StatusOr<std::vector<int32_t>> ReadIds(const SafeTensors& file,
                                             const std::string& name,
                                             int64_t begin, int64_t end) {
  const SafeTensorInfo& info = *file.Find(name);
  const int64_t seq = info.shape[1];
  std::vector<int32_t> ids((end - begin) * seq);
  const absl::Status status =
      ConvertElements(static_cast<const char*>(file.Data(info)) +
                          begin * seq * SizeOf(info.dtype),
                      info.dtype, ids.data(), DType::kInt32, ids.size());
  if (status.ok()) return ids;
  return absl::Status(status.code(),
                      absl::StrCat(file.path(), ": ", name, ": rows ", begin,
                                   " to ", end, ": ", status.message()));
}

// Tokens of images in each row.
std::vector<int64_t> ImageTokens(const std::vector<int32_t>& ids, int64_t rows,
                                 int32_t image_token) {
  std::vector<int64_t> tokens;
  const int64_t seq = rows == 0 ? 0 : ids.size() / rows;
  for (int64_t row = 0; row < rows; ++row) {
    const auto begin = ids.begin() + row * seq;
    tokens.push_back(std::count(begin, begin + seq, image_token));
  }
  return tokens;
}

absl::StatusOr<const SafeTensorInfo*> FindIds(const SafeTensors& file) {
  const SafeTensorInfo* ids = file.Find("input_ids");
  if (ids == nullptr) {
    return Wrong(file.path(), "input_ids", "missing", "[B, S] int64");
  }
  if (ids->shape.size() != 2) {
    return Wrong(file.path(), "input_ids", ToString(ids->shape), "[B, S]");
  }
  return ids;
}

// The shape of input_ids, which the other tensors go with.
absl::StatusOr<Shape> CheckShapes(const SafeTensors& file) {
  MIMO_ASSIGN_OR_RETURN(const SafeTensorInfo* const ids, FindIds(file));
  const SafeTensorInfo* labels = file.Find("labels");
  if (labels != nullptr && labels->shape != ids->shape) {
    return Wrong(file.path(), "labels", ToString(labels->shape),
                 ToString(ids->shape) + " as input_ids");
  }
  const SafeTensorInfo* pixels = file.Find("pixel_values");
  if (pixels != nullptr && pixels->shape.size() != 4) {
    return Wrong(file.path(), "pixel_values", ToString(pixels->shape),
                 "[images, C, H, W]");
  }
  return ids->shape;
}

// input_ids and labels of rows [begin, end).
absl::StatusOr<MicroBatch> ReadText(const SafeTensors& file, int64_t begin,
                                    int64_t end) {
  MicroBatch batch;
  batch.batch = end - begin;
  batch.seq = file.Find("input_ids")->shape[1];
  batch.lengths.assign(batch.batch, static_cast<int32_t>(batch.seq));
  MIMO_ASSIGN_OR_RETURN(batch.input_ids,
                        ReadIds(file, "input_ids", begin, end));
  batch.labels.assign(batch.batch * batch.seq, kIgnoreLabel);
  if (file.Find("labels") != nullptr) {
    MIMO_ASSIGN_OR_RETURN(batch.labels, ReadIds(file, "labels", begin, end));
  }
  return batch;
}

struct Images {
  int64_t begin = 0, end = 0;
};

// Those of rows [begin, end) among `images`, by the rows' tokens of images.
absl::StatusOr<Images> ImagesOfRows(const std::vector<int64_t>& image_tokens,
                                    int64_t images, int64_t begin,
                                    int64_t end) {
  if (images == 0) return Images();
  const auto rows = image_tokens.begin();
  const int64_t before = std::accumulate(rows, rows + begin, int64_t{0});
  const int64_t inside = std::accumulate(rows + begin, rows + end, int64_t{0});
  const int64_t tokens =
      std::accumulate(rows + end, image_tokens.end(), before + inside);
  const int64_t per_image = tokens / images;
  if (per_image == 0 || tokens % images != 0 || before % per_image != 0 ||
      inside % per_image != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "input_ids: ", tokens, " tokens of ", images,
        " images, wanted the same whole number an image, none cut by a row"));
  }
  return Images{before / per_image, (before + inside) / per_image};
}

// Images [begin, end) of the file.
absl::StatusOr<MicroBatch::Items> ReadImages(const SafeTensors& file,
                                             const Images& images) {
  const SafeTensorInfo& pixels = *file.Find("pixel_values");
  MicroBatch::Items items;
  items.shape.assign(pixels.shape.begin(), pixels.shape.end());
  items.shape[0] = images.end - images.begin;
  const int64_t size = NumElements(pixels.shape) / pixels.shape[0];
  items.values.resize(items.shape[0] * size);
  const absl::Status status = ConvertElements(
      static_cast<const char*>(file.Data(pixels)) +
          images.begin * size * SizeOf(pixels.dtype),
      pixels.dtype, items.values.data(), DType::kFloat32, items.values.size());
  if (status.ok()) return items;
  return absl::Status(
      status.code(),
      absl::StrCat(file.path(), ": pixel_values: ", status.message()));
}

int64_t ImagesIn(const SafeTensors& file) {
  const SafeTensorInfo* pixels = file.Find("pixel_values");
  return pixels == nullptr ? 0 : pixels->shape[0];
}

}  // namespace

absl::StatusOr<MicroBatch> ReadTensorBatch(const std::string& path) {
  MIMO_ASSIGN_OR_RETURN(const SafeTensors file, SafeTensors::Open(path));
  MIMO_ASSIGN_OR_RETURN(const Shape shape, CheckShapes(file));
  MIMO_ASSIGN_OR_RETURN(MicroBatch batch, ReadText(file, 0, shape[0]));
  if (const int64_t images = ImagesIn(file); images > 0) {
    MIMO_ASSIGN_OR_RETURN(batch.modalities["images"],
                          ReadImages(file, {0, images}));
  }
  return batch;
}

absl::StatusOr<int64_t> CountRows(const std::string& path) {
  MIMO_ASSIGN_OR_RETURN(const SafeTensors file, SafeTensors::Open(path));
  MIMO_ASSIGN_OR_RETURN(const SafeTensorInfo* const ids, FindIds(file));
  return ids->shape[0];
}

absl::StatusOr<std::unique_ptr<TensorsSource>> TensorsSource::Open(
    const std::string& path, int32_t image_token, DataShare share) {
  share.Check();
  MIMO_ASSIGN_OR_RETURN(SafeTensors file, SafeTensors::Open(path));
  MIMO_ASSIGN_OR_RETURN(const Shape shape, CheckShapes(file));
  const int64_t rows = shape[0];
  if (rows == 0 || rows % share.samples != 0) {
    return Wrong(
        path, "input_ids", absl::StrCat(rows, " rows"),
        absl::StrCat("a multiple of ", share.samples,
                     ", the samples of a micro-batch of all replicas"));
  }
  MIMO_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                        ReadIds(file, "input_ids", 0, rows));
  return std::unique_ptr<TensorsSource>(new TensorsSource(
      std::move(file), ImageTokens(ids, rows, image_token), std::move(share)));
}

absl::StatusOr<MicroBatch> TensorsSource::Next() {
  const int64_t first = next_row_, samples = share_.samples;
  next_row_ = (first + samples) % rows();
  MicroBatch batch;
  if (share_.text) {
    MIMO_ASSIGN_OR_RETURN(batch,
                          ReadText(file_, first + share_.text->begin(samples),
                                   first + share_.text->end(samples)));
  }
  if (const auto found = share_.modalities.find("images");
      found != share_.modalities.end()) {
    MIMO_ASSIGN_OR_RETURN(const Images images,
                          ImagesOfRows(image_tokens_, ImagesIn(file_),
                                       first + found->second.begin(samples),
                                       first + found->second.end(samples)));
    if (images.begin < images.end) {
      MIMO_ASSIGN_OR_RETURN(batch.modalities["images"],
                            ReadImages(file_, images));
    }
  }
  for (const std::string& modality : share_.counted) {
    std::vector<int64_t>& counts = batch.sample_rows[modality];
    counts.resize(samples);
    if (modality == "images")
      std::copy_n(image_tokens_.begin() + first, samples, counts.begin());
  }
  return batch;
}

absl::Status TensorsSource::Seek(int64_t samples) {
  const int64_t row = samples % rows();
  if (row % share_.samples != 0) {
    return Wrong(
        file_.path(), "input_ids", absl::StrCat("to go on at row ", row),
        absl::StrCat("a multiple of ", share_.samples,
                     ", the samples of a micro-batch of all replicas"));
  }
  next_row_ = row;
  return absl::OkStatus();
}

}  // namespace mimo
