#include "mimo/data/report/baselines.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr size_t kTrainPictures = 6000, kTestPictures = 500;

using Views = std::vector<std::vector<float>>;

absl::StatusOr<Views> FirstPictures(
    const std::vector<Conversation>& conversations, size_t most,
    const std::optional<AugmentOptions>& augment, uint64_t seed) {
  Views views;
  for (size_t i = 0; i < std::min(most, conversations.size()); ++i) {
    if (conversations[i].pictures.empty()) {
      views.emplace_back();
      continue;
    }
    MIMO_ASSIGN_OR_RETURN(
        ModalityItem item,
        View(conversations[i].pictures[0],
             {.image_size = 32, .fit = Fit::kSquash, .augment = augment},
             DataDraws(seed, DataDraw::kAugment, 0, i)));
    views.push_back(std::move(item.values));
  }
  return views;
}

// Null when there is no turn of this kind.
const Turn* FindTurn(const Conversation& conversation,
                     const std::string& kind) {
  for (const Turn& turn : conversation.turns) {
    if (turn.kind == kind) return &turn;
  }
  return nullptr;
}

float Distance(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size() || a.empty()) {
    return std::numeric_limits<float>::infinity();
  }
  float part[8] = {};  // independent sums, for the vector unit
  for (size_t i = 0; i + 8 <= a.size(); i += 8) {
    for (size_t k = 0; k < 8; ++k) {
      const float d = a[i + k] - b[i + k];
      part[k] += d * d;
    }
  }
  float sum = 0;
  for (const float p : part) sum += p;
  return sum;
}

}  // namespace

absl::StatusOr<std::vector<Baseline>> ComputeBaselines(
    const std::vector<Split>& train, const Split& split, uint64_t seed) {
  const std::vector<Conversation> test = split.conversations.All();
  // Of training: the answers of all, and the first, whose pictures are
  // compared.
  std::map<std::string, std::map<std::string, int64_t>> answers;
  std::vector<Conversation> first;
  for (const Split& part : train) {
    for (size_t i = 0; i < part.conversations.size(); ++i) {
      Conversation c = part.conversations[i];
      for (const Turn& turn : c.turns) ++answers[turn.kind][turn.answer];
      if (first.size() < kTrainPictures) first.push_back(std::move(c));
    }
  }
  MIMO_ASSIGN_OR_RETURN(const Views known,
                        FirstPictures(first, kTrainPictures, {}, seed));
  MIMO_ASSIGN_OR_RETURN(const Views asked, FirstPictures(test, kTestPictures,
                                                         split.augment, seed));
  std::vector<std::vector<float>> distance(asked.size());  // [asked, known]
  for (size_t i = 0; i < asked.size(); ++i) {
    for (const auto& view : known) {
      distance[i].push_back(Distance(asked[i], view));
    }
  }
  std::vector<Baseline> out;
  for (const auto& [kind, counts] : answers) {
    Baseline b = {};
    b.kind = kind;
    b.chance = 1.0 / counts.size();
    const auto most = std::max_element(
        counts.begin(), counts.end(),
        [](const auto& x, const auto& y) { return x.second < y.second; });
    int64_t compared = 0;
    for (size_t i = 0; i < test.size(); ++i) {
      const Turn* turn = FindTurn(test[i], kind);
      if (!turn) continue;
      ++b.questions;
      b.majority += turn->answer == most->first;
      if (i >= asked.size()) continue;
      ++compared;
      const Turn* nearest = nullptr;
      float least = std::numeric_limits<float>::infinity();
      for (size_t j = 0; j < known.size(); ++j) {
        if (distance[i][j] >= least) continue;
        if (const Turn* candidate = FindTurn(first[j], kind)) {
          nearest = candidate;
          least = distance[i][j];
        }
      }
      b.nearest += nearest && nearest->answer == turn->answer;
    }
    if (b.questions == 0) continue;
    b.majority /= b.questions;
    b.nearest /= std::max<int64_t>(1, compared);
    out.push_back(b);
  }
  return out;
}

}  // namespace mimo
