// Micro-batches of a data set in background threads, in one fixed order.
//
// The order is a function of the seed alone: each epoch is a permutation of the
// data set, epochs follow each other without a gap (a micro-batch may lie in
// two). So the only state to save is how many samples were consumed, and
// neither threads nor stops change what comes, nor does how ranks share out
// each global micro-batch.
#ifndef MIMO_MIMO_DATA_DATA_LOADER_H_
#define MIMO_MIMO_DATA_DATA_LOADER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "mimo/data/batch.h"
#include "mimo/data/dataset.h"

namespace mimo {

struct DataLoaderOptions {
  DataShare share;
  uint64_t seed = 0;
  int64_t consumed_samples = 0;  // where to go on; of all ranks
  int64_t num_workers = 1;       // 0: Next() does the work itself
  int32_t pad_id = 0;
  bool shuffle = true;
};

class DataLoader {
 public:
  // InvalidArgument when the data set is empty.
  static absl::StatusOr<std::unique_ptr<DataLoader>> Create(
      std::shared_ptr<const Dataset> dataset, const DataLoaderOptions& options);
  ~DataLoader();
  DataLoader(const DataLoader&) = delete;

  // The next micro-batch, or the first sample's error in it; after an error
  // every call gives it again. Called from one thread.
  absl::StatusOr<MicroBatch> Next();

  // Samples in the global micro-batches of what Next() has given, and before
  // them: what a resume needs.
  int64_t consumed_samples() const { return consumed_; }

 private:
  DataLoader(std::shared_ptr<const Dataset> dataset,
             const DataLoaderOptions& options);
  void Work();
  // This rank's part of the global micro-batch from `consumed` on.
  absl::StatusOr<MicroBatch> Make(int64_t consumed);
  std::shared_ptr<const std::vector<int64_t>> Order(int64_t epoch);

  const std::shared_ptr<const Dataset> dataset_;
  const DataLoaderOptions options_;
  int64_t consumed_;

  absl::Mutex mutex_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t claimed_ ABSL_GUARDED_BY(mutex_);  // micro-batches begin before it
  int64_t wanted_ ABSL_GUARDED_BY(mutex_);   // of Next(): a mirror of consumed_
  std::map<int64_t, absl::StatusOr<MicroBatch>> ready_ ABSL_GUARDED_BY(mutex_);

  absl::Mutex order_mutex_;
  std::map<int64_t, std::shared_ptr<const std::vector<int64_t>>> orders_
      ABSL_GUARDED_BY(order_mutex_);  // of the last two epochs
  std::vector<std::thread> workers_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_DATA_LOADER_H_
