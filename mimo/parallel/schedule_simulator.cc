#include "mimo/parallel/schedule_simulator.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "absl/log/check.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace mimo {
namespace {

// What moves along an edge one way.
struct Move {
  std::vector<int> came;  // ranks
  double last = 0;        // when the last of them came
};

class Simulator {
 public:
  Simulator(const PipelineSchedule& schedule,
            absl::Span<const std::vector<PipelineStep>> programs,
            const ScheduleTimes& times)
      : schedule_(schedule), programs_(programs), times_(times) {
    CHECK_EQ(times.forward.size(), schedule.stages.size());
    CHECK_EQ(times.backward.size(), schedule.stages.size());
    CHECK_EQ(times.transfer.size(), schedule.edges.size());
    std::vector<std::set<int>> ranks(schedule.stages.size());
    for (int r = 0; r < programs.size(); ++r) {
      for (const PipelineStep& step : programs[r]) {
        if (step.kind != PipelineStep::kTransfer) ranks[step.at].insert(r);
      }
    }
    for (const auto [from, to] : schedule.edges) {
      ranks_.push_back(ranks[from]);
      ranks_.back().insert(ranks[to].begin(), ranks[to].end());
    }
  }

  absl::StatusOr<SimulatedSchedule> Run() {
    const int ranks = programs_.size();
    result_.ranks.resize(ranks);
    waits_.resize(ranks);
    for (bool moved = true; moved;) {
      moved = false;
      for (int r = 0; r < ranks; ++r) {
        while (Advance(r)) moved = true;
      }
    }
    std::vector<std::string> stuck;
    double busy = 0;
    for (int r = 0; r < ranks; ++r) {
      const std::vector<TimedStep>& done = result_.ranks[r];
      if (done.size() < programs_[r].size()) stuck.push_back(Stuck(r));
      for (const TimedStep& step : done) {
        result_.total = std::max(result_.total, step.end);
        if (step.step.kind != PipelineStep::kTransfer) {
          busy += step.end - step.begin;
        }
      }
    }
    if (!stuck.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("deadlock:\n", absl::StrJoin(stuck, "\n")));
    }
    if (result_.total > 0) {
      result_.bubble_share = 1 - busy / (result_.total * ranks);
    }
    return std::move(result_);
  }

 private:
  std::vector<Move*> MovesOf(const PipelineStep& step) {
    std::vector<Move*> moves;
    if (step.kind != PipelineStep::kTransfer) return moves;
    if (step.forward >= 0) {
      moves.push_back(&moves_[{step.at, false, step.forward}]);
    }
    if (step.backward >= 0) {
      moves.push_back(&moves_[{step.at, true, step.backward}]);
    }
    return moves;
  }

  // True if rank r came to its next step's end.
  bool Advance(int r) {
    std::vector<TimedStep>& done = result_.ranks[r];
    if (done.size() == programs_[r].size()) return false;
    const PipelineStep& step = programs_[r][done.size()];
    const double begin = done.empty() ? 0 : done.back().end;
    double end = begin;
    if (step.kind == PipelineStep::kTransfer) {
      const std::vector<Move*> moves = MovesOf(step);
      if (!waits_[r]) {
        for (Move* move : moves) {
          move->came.push_back(r);
          move->last = std::max(move->last, begin);
        }
        waits_[r] = true;
      }
      for (const Move* move : moves) {
        if (move->came.size() < ranks_[step.at].size()) return false;
        end = std::max(end, move->last + times_.transfer[step.at]);
      }
      waits_[r] = false;
    } else {
      end += (step.kind == PipelineStep::kForward ? times_.forward
                                                  : times_.backward)[step.at];
    }
    done.push_back({step, begin, end});
    return true;
  }

  std::string Stuck(int r) {
    const int at = result_.ranks[r].size();
    const PipelineStep& step = programs_[r][at];
    std::set<int> missing;
    for (const Move* move : MovesOf(step)) {
      for (int other : ranks_[step.at]) {
        if (std::find(move->came.begin(), move->came.end(), other) ==
            move->came.end()) {
          missing.insert(other);
        }
      }
    }
    return absl::StrCat("rank ", r, " at step ", at, " (",
                        schedule_.Describe(step), ") waits for ",
                        missing.size() == 1 ? "rank " : "ranks ",
                        absl::StrJoin(missing, ", "));
  }

  const PipelineSchedule& schedule_;
  const absl::Span<const std::vector<PipelineStep>> programs_;
  const ScheduleTimes& times_;
  std::vector<std::set<int>> ranks_;  // [edges] of its stages
  // By edge, backward, micro-batch; they stay where they are.
  std::map<std::tuple<int, bool, int>, Move> moves_;
  std::vector<bool> waits_;  // [ranks] has come to the transfer it is at
  SimulatedSchedule result_;
};

}  // namespace

absl::StatusOr<SimulatedSchedule> SimulateSchedule(
    const PipelineSchedule& schedule,
    absl::Span<const std::vector<PipelineStep>> programs,
    const ScheduleTimes& times) {
  return Simulator(schedule, programs, times).Run();
}

}  // namespace mimo
