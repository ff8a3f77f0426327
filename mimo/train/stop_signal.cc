#include "mimo/train/stop_signal.h"

#include "absl/log/check.h"

namespace mimo {
namespace {

volatile std::sig_atomic_t stop_requested = 0;

void RequestStop(int) { stop_requested = 1; }

}  // namespace

StopSignal::StopSignal() {
  stop_requested = 0;
  struct sigaction action = {};
  action.sa_handler = RequestStop;
  action.sa_flags = SA_RESTART | SA_RESETHAND;
  CHECK_EQ(sigaction(SIGINT, &action, &interrupt_), 0);
  CHECK_EQ(sigaction(SIGTERM, &action, &terminate_), 0);
}

StopSignal::~StopSignal() {
  sigaction(SIGINT, &interrupt_, nullptr);
  sigaction(SIGTERM, &terminate_, nullptr);
}

bool StopSignal::requested() const { return stop_requested != 0; }

}  // namespace mimo
