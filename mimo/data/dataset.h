// What can be trained on: numbered samples.
#ifndef MIMO_MIMO_DATA_DATASET_H_
#define MIMO_MIMO_DATA_DATASET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/random/philox.h"
#include "mimo/data/batch.h"

namespace mimo {

// The modalities whose items are wanted of a sample.
using WantedItems = absl::FunctionRef<bool(const std::string& modality)>;
inline bool AllItems(const std::string& modality) { return true; }

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  // Sample `index` in [0, size()) at its visit-th use (0, 1, ..., one an
  // epoch), which may be another view of it. A pure function, called from many
  // threads. Items that are not wanted are not read; their tokens are there.
  virtual absl::StatusOr<Sample> Get(int64_t index, int64_t visit,
                                     WantedItems wanted) const = 0;
};

// Samples of `parts` in turn, one of each, whatever their sizes: the smaller
// ones come round again (at later visits) while the largest is gone through.
class MixedDataset : public Dataset {
 public:
  // At least one part, none empty.
  explicit MixedDataset(std::vector<std::shared_ptr<const Dataset>> parts);
  int64_t size() const override { return longest_ * parts_.size(); }
  absl::StatusOr<Sample> Get(int64_t index, int64_t visit,
                             WantedItems wanted) const override;

 private:
  std::vector<std::shared_ptr<const Dataset>> parts_;
  int64_t longest_ = 0;
};

// Random draws of data: one stream of the run's seed for each use, visit and
// sample, so that no draw depends on another sample or on threads.
enum class Draw : uint64_t { kShuffle = 0xd0, kTurns, kAugment, kMock };
PhiloxSequence DataDraws(uint64_t seed, Draw use, int64_t visit, int64_t index);

// A permutation of [0, size) for an epoch, from the seed.
std::vector<int64_t> EpochOrder(uint64_t seed, int64_t epoch, int64_t size);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_DATASET_H_
