// StopSignal: Ctrl-C (SIGINT) and SIGTERM as a question the trainer asks.
//
// While one lives, the first signal is only remembered; a second one ends the
// process as if there were no StopSignal. The flag is static, the one thing
// that a signal handler can reach: one StopSignal at a time.
#ifndef MIMO_MIMO_TRAIN_STOP_SIGNAL_H_
#define MIMO_MIMO_TRAIN_STOP_SIGNAL_H_

#include <csignal>

namespace mimo {

class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  bool requested() const;

 private:
  struct sigaction interrupt_, terminate_;  // what was there before
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_STOP_SIGNAL_H_
