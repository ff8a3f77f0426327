// Batches kept in a safetensors file, for parity tests:
//   input_ids    [B, S] int64
//   labels       [B, S] int64, aligned with input_ids; optional
//   pixel_values [images, C, H, W] float32, in their tokens' order; optional
#ifndef MIMO_MIMO_TRAIN_TENSORS_SOURCE_H_
#define MIMO_MIMO_TRAIN_TENSORS_SOURCE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

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

// The rows in order, round and round: this rank's share of each global
// micro-batch. Nothing else is read, but once the ids of all rows: of how many
// images each is, a file says by these alone.
class TensorsSource : public BatchSource {
 public:
  // Error: the rows are not a whole number of global micro-batches.
  static absl::StatusOr<std::unique_ptr<TensorsSource>> Open(
      const std::string& path, int32_t image_token, DataShare share);
  absl::StatusOr<MicroBatch> Next() override;
  absl::Status Seek(int64_t samples) override;

 private:
  TensorsSource(SafeTensors file, std::vector<int64_t> image_tokens,
                DataShare share)
      : file_(std::move(file)),
        image_tokens_(std::move(image_tokens)),
        share_(std::move(share)) {}
  int64_t rows() const { return image_tokens_.size(); }

  SafeTensors file_;
  std::vector<int64_t> image_tokens_;  // of each row
  DataShare share_;
  int64_t next_row_ = 0;  // of the next global micro-batch
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_TENSORS_SOURCE_H_
