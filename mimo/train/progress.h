// Progress: how far a run is, for the person who waits.
//
// On a terminal one line is redrawn in place; elsewhere a plain line comes at
// most every few seconds.
#ifndef MIMO_MIMO_TRAIN_PROGRESS_H_
#define MIMO_MIMO_TRAIN_PROGRESS_H_

#include <cstdint>
#include <cstdio>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace mimo {

struct ProgressState {
  int64_t iteration, total;
  double lm_loss, learning_rate;
  double tokens_per_second;
  absl::Duration left;  // time to the end, estimated
};

// "  12/100 [==>         ] loss 2.3456  lr 1.00e-03  5321 tokens/s  1:05 left"
std::string ProgressLine(const ProgressState& state);

class Progress {
 public:
  // Null: nothing is said.
  Progress(std::FILE* out, bool terminal) : out_(out), terminal_(terminal) {}
  ~Progress() { EndLine(); }

  // Draws `state` unless it is too soon after the last; the last iteration is
  // always drawn.
  void Update(const ProgressState& state, absl::Time now);
  // A line of its own.
  void Say(absl::string_view message);

 private:
  void EndLine();
  std::FILE* out_;
  bool terminal_;
  bool open_ = false;  // the cursor is on the redrawn line
  absl::Time drawn_ = absl::InfinitePast();
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_PROGRESS_H_
