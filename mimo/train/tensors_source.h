// Batches kept in a safetensors file, for parity tests:
//   input_ids    [B, S] int64
//   labels       [B, S] int64, aligned with input_ids; optional
//   pixel_values [images, C, H, W] float32, in their tokens' order; optional
#ifndef MIMO_MIMO_TRAIN_TENSORS_SOURCE_H_
#define MIMO_MIMO_TRAIN_TENSORS_SOURCE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "mimo/checkpoint/safetensors.h"
#include "mimo/data/batch.h"
#include "mimo/train/batch_source.h"

namespace mimo {

// All rows of the file as one batch; labels are kIgnoreLabel when absent.
// Errors name the file.
absl::StatusOr<MicroBatch> ReadTensorBatch(const std::string& path);

// B. Errors name the file.
absl::StatusOr<int64_t> CountRows(const std::string& path);

// Rows [begin, end) of `batch` with their images: each image has the same
// number of tokens. Error: the image tokens are not a whole number an image.
absl::StatusOr<MicroBatch> SliceRows(const MicroBatch& batch, int64_t begin,
                                     int64_t end, int32_t image_token);

// The rows in order, round and round: this rank's share of each global
// micro-batch. Only pixels that are given out are read.
class TensorsSource : public BatchSource {
 public:
  // Error: the rows are not a whole number of global micro-batches.
  static absl::StatusOr<std::unique_ptr<TensorsSource>> Open(
      const std::string& path, int32_t image_token, DataShare share);
  absl::StatusOr<MicroBatch> Next() override;
  absl::Status Seek(int64_t samples) override;

 private:
  TensorsSource(SafeTensors file, MicroBatch text, int32_t image_token,
                DataShare share)
      : file_(std::move(file)),
        text_(std::move(text)),
        image_token_(image_token),
        share_(std::move(share)) {}

  SafeTensors file_;
  MicroBatch text_;  // all rows
  int32_t image_token_;
  DataShare share_;
  int64_t next_row_ = 0;  // of the next global micro-batch
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_TENSORS_SOURCE_H_
