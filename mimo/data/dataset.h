// What can be trained on: numbered samples.
#ifndef MIMO_MIMO_DATA_DATASET_H_
#define MIMO_MIMO_DATA_DATASET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/random/philox.h"
#include "mimo/data/batch.h"

namespace mimo {

// A sample is asked for in parts, each without reading the others: of `index`
// in [0, size()), at its visit-th use (0, 1, ..., one an epoch), which may be
// another view of it. Pure functions, called from many threads.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  // Its ids and labels alone.
  virtual absl::StatusOr<Sample> Text(int64_t index, int64_t visit) const = 0;
  // Its items of a modality, in order.
  virtual absl::StatusOr<std::vector<ModalityItem>> Items(
      int64_t index, int64_t visit, const std::string& modality) const = 0;
  // How many tokens of its text stand for these items: as its record says,
  // before anything is made of it.
  virtual int64_t ItemTokens(int64_t index, int64_t visit,
                             const std::string& modality) const = 0;
};

// Samples of `parts` in turn, one of each, whatever their sizes: the smaller
// ones come round again (at later visits) while the largest is gone through.
class MixedDataset : public Dataset {
 public:
  // At least one part, none empty.
  explicit MixedDataset(std::vector<std::shared_ptr<const Dataset>> parts);
  int64_t size() const override { return longest_ * parts_.size(); }
  absl::StatusOr<Sample> Text(int64_t index, int64_t visit) const override;
  absl::StatusOr<std::vector<ModalityItem>> Items(
      int64_t index, int64_t visit, const std::string& modality) const override;
  int64_t ItemTokens(int64_t index, int64_t visit,
                     const std::string& modality) const override;

 private:
  struct Place {
    const Dataset& part;
    int64_t index, visit;
  };
  Place Find(int64_t index, int64_t visit) const;

  std::vector<std::shared_ptr<const Dataset>> parts_;
  int64_t longest_ = 0;
};

// Random draws of data: one stream of the run's seed for each use, visit and
// sample, so that no draw depends on another sample or on threads.
enum class DataDraw : uint64_t {
  kShuffle = 0xd0,
  kTurns,
  kAugment,
  kMock,
  kMockItems
};
PhiloxSequence DataDraws(uint64_t seed, DataDraw use, int64_t visit,
                         int64_t index);

// A permutation of [0, size) for an epoch, from the seed.
std::vector<int64_t> EpochOrder(uint64_t seed, int64_t epoch, int64_t size);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_DATASET_H_
