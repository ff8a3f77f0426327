#include "mimo/train/progress.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "gtest/gtest.h"

namespace mimo {
namespace {

ProgressState At(int64_t iteration) {
  return {.iteration = iteration,
          .total = 100,
          .lm_loss = 2.34567,
          .learning_rate = 9.87e-4,
          .tokens_per_second = 5321.4,
          .left = absl::Seconds(65)};
}

// What a Progress writes, as a program at the other end of `out` sees it.
template <typename F>
std::string Written(bool terminal, F&& use) {
  char* data = nullptr;
  size_t size = 0;
  std::FILE* out = open_memstream(&data, &size);
  {
    Progress progress(out, terminal);
    use(progress);
  }
  std::fclose(out);
  std::string text(data, size);
  std::free(data);
  return text;
}

TEST(ProgressLine, Reads) {
  EXPECT_EQ(ProgressLine(At(7)),
            "  7/100 [=>                  ] loss 2.3457  lr 9.87e-04  "
            "5321 tokens/s  1:05 left");
  ProgressState state = At(100);
  state.left = absl::ZeroDuration();
  EXPECT_EQ(ProgressLine(state),
            "100/100 [====================] loss 2.3457  lr 9.87e-04  "
            "5321 tokens/s  0:00 left");
  state.left = absl::Hours(25) + absl::Seconds(61);
  EXPECT_NE(ProgressLine(state).find("25:01:01 left"), std::string::npos);
}

TEST(Progress, ATerminalLineIsRedrawn) {
  const absl::Time start = absl::UnixEpoch();
  const std::string text = Written(true, [&](Progress& progress) {
    progress.Update(At(1), start);
    progress.Update(At(2), start + absl::Milliseconds(50));  // too soon
    progress.Update(At(3), start + absl::Milliseconds(150));
    progress.Say("saved");
    progress.Update(At(100), start + absl::Milliseconds(151));  // the last
  });
  EXPECT_EQ(text, "\r" + ProgressLine(At(1)) + "\x1b[K\r" +
                      ProgressLine(At(3)) + "\x1b[K\nsaved\n\r" +
                      ProgressLine(At(100)) + "\x1b[K\n");
}

TEST(Progress, AFileGetsPlainLinesNowAndThen) {
  const absl::Time start = absl::UnixEpoch();
  const std::string text = Written(false, [&](Progress& progress) {
    progress.Update(At(1), start);
    progress.Update(At(2), start + absl::Seconds(4));
    progress.Say("saved");
    progress.Update(At(3), start + absl::Seconds(5));
    progress.Update(At(100), start + absl::Seconds(6));
  });
  EXPECT_EQ(text, ProgressLine(At(1)) + "\nsaved\n" + ProgressLine(At(3)) +
                      "\n" + ProgressLine(At(100)) + "\n");
}

}  // namespace
}  // namespace mimo
