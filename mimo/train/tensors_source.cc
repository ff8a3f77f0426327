#include "mimo/train/tensors_source.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/safetensors.h"

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

}  // namespace

absl::StatusOr<MicroBatch> ReadTensorBatch(const std::string& path) {
  Allocator allocator;
  MIMO_ASSIGN_OR_RETURN(const SafeTensors file, SafeTensors::Open(path));
  const SafeTensorInfo* ids = file.Find("input_ids");
  if (ids == nullptr) {
    return Wrong(path, "input_ids", "missing", "[B, S] int64");
  }
  if (ids->shape.size() != 2) {
    return Wrong(path, "input_ids", ToString(ids->shape), "[B, S]");
  }
  MicroBatch batch;
  batch.batch = ids->shape[0];
  batch.seq = ids->shape[1];
  batch.lengths.assign(batch.batch, static_cast<int32_t>(batch.seq));
  MIMO_ASSIGN_OR_RETURN(batch.input_ids, ReadIds(file, "input_ids", allocator));
  batch.labels.assign(batch.batch * batch.seq, kIgnoreLabel);
  if (const SafeTensorInfo* labels = file.Find("labels")) {
    if (labels->shape != ids->shape) {
      return Wrong(path, "labels", ToString(labels->shape),
                   ToString(ids->shape) + " as input_ids");
    }
    MIMO_ASSIGN_OR_RETURN(batch.labels, ReadIds(file, "labels", allocator));
  }
  if (const SafeTensorInfo* pixels = file.Find("pixel_values")) {
    if (pixels->shape.size() != 4) {
      return Wrong(path, "pixel_values", ToString(pixels->shape),
                   "[images, C, H, W]");
    }
    MIMO_ASSIGN_OR_RETURN(
        const Tensor values,
        file.Load("pixel_values", allocator, DType::kFloat32));
    const auto span = values.span<float>();
    batch.modalities["images"] = {
        .shape = {pixels->shape.begin(), pixels->shape.end()},
        .values = {span.begin(), span.end()}};
  }
  return batch;
}

absl::StatusOr<MicroBatch> SliceRows(const MicroBatch& batch, int64_t begin,
                                     int64_t end, int32_t image_token) {
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
  const auto found = batch.modalities.find("images");
  if (found == batch.modalities.end() || found->second.shape[0] == 0) {
    return slice;
  }
  const MicroBatch::Items& images = found->second;
  const int64_t tokens =
      Count(batch.input_ids, 0, batch.input_ids.size(), image_token);
  const int64_t per_image = tokens / images.shape[0];
  const int64_t before = Count(batch.input_ids, 0, first, image_token);
  const int64_t inside = Count(batch.input_ids, first, last, image_token);
  if (per_image == 0 || tokens % images.shape[0] != 0 ||
      before % per_image != 0 || inside % per_image != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "input_ids: ", tokens, " tokens of ", images.shape[0],
        " images, wanted the same whole number an image, none cut by a row"));
  }
  if (inside == 0) return slice;
  const int64_t size = images.values.size() / images.shape[0];
  MicroBatch::Items& out = slice.modalities["images"];
  out.shape = images.shape;
  out.shape[0] = inside / per_image;
  const auto from = images.values.begin() + before / per_image * size;
  out.values.assign(from, from + out.shape[0] * size);
  return slice;
}

absl::StatusOr<std::unique_ptr<TensorsSource>> TensorsSource::Open(
    const std::string& path, int64_t micro_batch_size, int32_t image_token) {
  MIMO_ASSIGN_OR_RETURN(MicroBatch all, ReadTensorBatch(path));
  if (all.batch == 0 || all.batch % micro_batch_size != 0) {
    return Wrong(
        path, "input_ids", absl::StrCat(all.batch, " rows"),
        absl::StrCat("a multiple of micro_batch_size ", micro_batch_size));
  }
  return std::unique_ptr<TensorsSource>(
      new TensorsSource(std::move(all), micro_batch_size, image_token));
}

absl::StatusOr<MicroBatch> TensorsSource::Next() {
  const int64_t begin = next_row_;
  next_row_ = (begin + micro_batch_size_) % all_.batch;
  return SliceRows(all_, begin, begin + micro_batch_size_, image_token_);
}

absl::Status TensorsSource::Seek(int64_t samples) {
  next_row_ = samples % all_.batch;
  return absl::OkStatus();
}

}  // namespace mimo
