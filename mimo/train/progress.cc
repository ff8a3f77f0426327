#include "mimo/train/progress.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace mimo {
namespace {

constexpr int kBarWidth = 20;
constexpr absl::Duration kRedraw = absl::Milliseconds(100);
constexpr absl::Duration kPlainLine = absl::Seconds(5);

std::string Clock(absl::Duration duration) {
  const int64_t seconds = absl::ToInt64Seconds(duration);
  if (seconds < 3600) {
    return absl::StrFormat("%d:%02d", seconds / 60, seconds % 60);
  }
  return absl::StrFormat("%d:%02d:%02d", seconds / 3600, seconds / 60 % 60,
                         seconds % 60);
}

}  // namespace

std::string ProgressLine(const ProgressState& state) {
  const std::string total = absl::StrCat(state.total);
  const int done = static_cast<int>(state.iteration * kBarWidth / state.total);
  std::string bar(done, '=');
  if (done < kBarWidth) bar += '>';
  bar.resize(kBarWidth, ' ');
  return absl::StrFormat(
      "%*d/%s [%s] loss %.4f  lr %.2e  %.0f tokens/s  %s left", total.size(),
      state.iteration, total, bar, state.lm_loss, state.learning_rate,
      state.tokens_per_second, Clock(state.left));
}

void Progress::Update(const ProgressState& state, absl::Time now) {
  if (out_ == nullptr) return;
  const bool last = state.iteration == state.total;
  if (!last && now - drawn_ < (terminal_ ? kRedraw : kPlainLine)) return;
  drawn_ = now;
  const std::string line = ProgressLine(state);
  if (terminal_) {
    std::fprintf(out_, "\r%s\x1b[K",
                 line.c_str());  // clears what is to the right
    open_ = true;
  } else {
    std::fprintf(out_, "%s\n", line.c_str());
  }
  std::fflush(out_);
}

void Progress::Say(absl::string_view message) {
  if (out_ == nullptr) return;
  EndLine();
  absl::FPrintF(out_, "%s\n", message);
  std::fflush(out_);
}

void Progress::EndLine() {
  if (open_) std::fputc('\n', out_);
  open_ = false;
}

}  // namespace mimo
