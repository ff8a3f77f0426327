// What can be had without learning: the bars that a model's answers stand
// beside.
#ifndef MIMO_MIMO_DATA_REPORT_BASELINES_H_
#define MIMO_MIMO_DATA_REPORT_BASELINES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "mimo/data/corpus.h"

namespace mimo {

// Shares of a split's questions of one kind that are answered exactly.
struct Baseline {
  std::string kind;
  int64_t questions;  // in the whole split
  double chance;      // a random one of the training set's answers
  double majority;    // always its most frequent answer
  // The answer of the training picture that is nearest in pixels: squared
  // distance of 32 x 32 views, the split's with its augmentation (drawn from
  // `seed`).
  double nearest;
};

// One a kind of question, in alphabetical order. Of sets that are larger, the
// first 6000 training pictures and 500 others are compared.
absl::StatusOr<std::vector<Baseline>> ComputeBaselines(
    const std::vector<Split>& train, const Split& split, uint64_t seed);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_REPORT_BASELINES_H_
