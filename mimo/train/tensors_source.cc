#include "mimo/train/tensors_source.h"

#include <algorithm>
#include <limits>
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

absl::StatusOr<std::vector<int32_t>> ReadIds(const SafeTensors& file,
                                             const std::string& name,
                                             Allocator& allocator) {
  MIMO_ASSIGN_OR_RETURN(const Tensor tensor,
                        file.Load(name, allocator, DType::kInt64));
  std::vector<int32_t> ids;
  for (int64_t id : tensor.span<int64_t>()) {
    if (id < std::numeric_limits<int32_t>::min() ||
        id > std::numeric_limits<int32_t>::max()) {
      return Wrong(file.path(), name, absl::StrCat("token ", id),
                   "32 bits at most");
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

int64_t Count(const std::vector<int32_t>& ids, int64_t begin, int64_t end,
              int32_t id) {
  return std::count(ids.begin() + begin, ids.begin() + end, id);
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

// input_ids and labels.
absl::StatusOr<MicroBatch> ReadText(const SafeTensors& file) {
  Allocator allocator;
  MIMO_ASSIGN_OR_RETURN(const SafeTensorInfo* const ids, FindIds(file));
  MicroBatch batch;
  batch.batch = ids->shape[0];
  batch.seq = ids->shape[1];
  batch.lengths.assign(batch.batch, static_cast<int32_t>(batch.seq));
  MIMO_ASSIGN_OR_RETURN(batch.input_ids, ReadIds(file, "input_ids", allocator));
  batch.labels.assign(batch.batch * batch.seq, kIgnoreLabel);
  if (const SafeTensorInfo* labels = file.Find("labels")) {
    if (labels->shape != ids->shape) {
      return Wrong(file.path(), "labels", ToString(labels->shape),
                   ToString(ids->shape) + " as input_ids");
    }
    MIMO_ASSIGN_OR_RETURN(batch.labels, ReadIds(file, "labels", allocator));
  }
  const SafeTensorInfo* pixels = file.Find("pixel_values");
  if (pixels != nullptr && pixels->shape.size() != 4) {
    return Wrong(file.path(), "pixel_values", ToString(pixels->shape),
                 "[images, C, H, W]");
  }
  return batch;
}

struct Images {
  int64_t begin = 0, end = 0;
};

// Those of rows [begin, end) among `images`.
absl::StatusOr<Images> ImagesOfRows(const MicroBatch& batch, int64_t images,
                                    int64_t begin, int64_t end,
                                    int32_t image_token) {
  if (images == 0) return Images();
  const std::vector<int32_t>& ids = batch.input_ids;
  const int64_t first = begin * batch.seq, last = end * batch.seq;
  const int64_t tokens = Count(ids, 0, ids.size(), image_token);
  const int64_t per_image = tokens / images;
  const int64_t before = Count(ids, 0, first, image_token);
  const int64_t inside = Count(ids, first, last, image_token);
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

MicroBatch TextOfRows(const MicroBatch& batch, int64_t begin, int64_t end) {
  MicroBatch slice;
  slice.batch = end - begin;
  slice.seq = batch.seq;
  const int64_t first = begin * batch.seq, last = end * batch.seq;
  slice.input_ids.assign(batch.input_ids.begin() + first,
                         batch.input_ids.begin() + last);
  slice.labels.assign(batch.labels.begin() + first,
                      batch.labels.begin() + last);
  slice.lengths.assign(batch.lengths.begin() + begin,
                       batch.lengths.begin() + end);
  return slice;
}

}  // namespace

absl::StatusOr<MicroBatch> ReadTensorBatch(const std::string& path) {
  MIMO_ASSIGN_OR_RETURN(const SafeTensors file, SafeTensors::Open(path));
  MIMO_ASSIGN_OR_RETURN(MicroBatch batch, ReadText(file));
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

absl::StatusOr<MicroBatch> SliceRows(const MicroBatch& batch, int64_t begin,
                                     int64_t end, int32_t image_token) {
  MicroBatch slice = TextOfRows(batch, begin, end);
  const auto found = batch.modalities.find("images");
  if (found == batch.modalities.end()) return slice;
  const MicroBatch::Items& all = found->second;
  MIMO_ASSIGN_OR_RETURN(
      const Images images,
      ImagesOfRows(batch, all.shape[0], begin, end, image_token));
  if (images.begin == images.end) return slice;
  const int64_t size = all.values.size() / all.shape[0];
  MicroBatch::Items& items = slice.modalities["images"];
  items.shape = all.shape;
  items.shape[0] = images.end - images.begin;
  items.values.assign(all.values.begin() + images.begin * size,
                      all.values.begin() + images.end * size);
  return slice;
}

absl::StatusOr<std::unique_ptr<TensorsSource>> TensorsSource::Open(
    const std::string& path, int32_t image_token, DataShare share) {
  share.Check();
  MIMO_ASSIGN_OR_RETURN(SafeTensors file, SafeTensors::Open(path));
  MIMO_ASSIGN_OR_RETURN(MicroBatch text, ReadText(file));
  if (text.batch == 0 || text.batch % share.samples != 0) {
    return Wrong(
        path, "input_ids", absl::StrCat(text.batch, " rows"),
        absl::StrCat("a multiple of ", share.samples,
                     ", the samples of a micro-batch of all replicas"));
  }
  return std::unique_ptr<TensorsSource>(new TensorsSource(
      std::move(file), std::move(text), image_token, std::move(share)));
}

absl::StatusOr<MicroBatch> TensorsSource::Next() {
  const int64_t first = next_row_, samples = share_.samples;
  next_row_ = (first + samples) % text_.batch;
  MicroBatch batch;
  if (share_.text) {
    batch = TextOfRows(text_, first + share_.text->begin(samples),
                       first + share_.text->end(samples));
  }
  if (const auto found = share_.modalities.find("images");
      found != share_.modalities.end()) {
    MIMO_ASSIGN_OR_RETURN(
        const Images images,
        ImagesOfRows(text_, ImagesIn(file_),
                     first + found->second.begin(samples),
                     first + found->second.end(samples), image_token_));
    if (images.begin < images.end) {
      MIMO_ASSIGN_OR_RETURN(batch.modalities["images"],
                            ReadImages(file_, images));
    }
  }
  for (const auto& [modality, id] : share_.special_token_ids) {
    for (int64_t row = first; row < first + samples; ++row) {
      batch.sample_rows[modality].push_back(
          Count(text_.input_ids, row * text_.seq, (row + 1) * text_.seq, id));
    }
  }
  return batch;
}

absl::Status TensorsSource::Seek(int64_t samples) {
  const int64_t row = samples % text_.batch;
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
