// BatchSource: where the trainer's micro-batches come from.
#ifndef MIMO_MIMO_TRAIN_BATCH_SOURCE_H_
#define MIMO_MIMO_TRAIN_BATCH_SOURCE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mimo/data/batch.h"

namespace mimo {

// An endless stream of samples, the same every time it is read. Ranks share out
// each global micro-batch of it.
class BatchSource {
 public:
  virtual ~BatchSource() = default;

  // This rank's part of the next global micro-batch.
  virtual absl::StatusOr<MicroBatch> Next() = 0;
  // Goes to where `samples` samples of the stream have been given out, to all
  // ranks together.
  virtual absl::Status Seek(int64_t samples) = 0;
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_BATCH_SOURCE_H_
