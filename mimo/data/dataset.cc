#include "mimo/data/dataset.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/log/check.h"

namespace mimo {

MixedDataset::MixedDataset(std::vector<std::shared_ptr<const Dataset>> parts)
    : parts_(std::move(parts)) {
  CHECK(!parts_.empty()) << "MixedDataset";
  for (const auto& part : parts_) {
    CHECK_GT(part->size(), 0) << "MixedDataset";
    longest_ = std::max(longest_, part->size());
  }
}

MixedDataset::Place MixedDataset::Find(int64_t index, int64_t visit) const {
  const Dataset& part = *parts_[index % parts_.size()];
  const int64_t at = visit * longest_ + index / parts_.size();
  return {part, at % part.size(), at / part.size()};
}

absl::StatusOr<Sample> MixedDataset::Text(int64_t index, int64_t visit) const {
  const Place at = Find(index, visit);
  return at.part.Text(at.index, at.visit);
}

absl::StatusOr<std::vector<ModalityItem>> MixedDataset::Items(
    int64_t index, int64_t visit, const std::string& modality) const {
  const Place at = Find(index, visit);
  return at.part.Items(at.index, at.visit, modality);
}

int64_t MixedDataset::ItemTokens(int64_t index, int64_t visit,
                                 const std::string& modality) const {
  const Place at = Find(index, visit);
  return at.part.ItemTokens(at.index, at.visit, modality);
}

PhiloxSequence DataDraws(uint64_t seed, DataDraw use, int64_t visit,
                         int64_t index) {
  CHECK(visit >= 0 && visit < int64_t{1} << 24) << visit;
  CHECK(index >= 0 && index < int64_t{1} << 32) << index;
  return PhiloxSequence(seed, static_cast<uint64_t>(use) << 56 |
                                  static_cast<uint64_t>(visit) << 32 |
                                  static_cast<uint64_t>(index));
}

std::vector<int64_t> EpochOrder(uint64_t seed, int64_t epoch, int64_t size) {
  std::vector<int64_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  PhiloxSequence random = DataDraws(seed, DataDraw::kShuffle, epoch, 0);
  for (int64_t i = size - 1; i > 0; --i) {  // Fisher-Yates
    std::swap(order[i], order[random.Below(i + 1)]);
  }
  return order;
}

}  // namespace mimo
