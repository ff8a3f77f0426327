// What the trainer measures of some iterations.
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"
#include "mimo/parallel/sum_over_ranks.h"
#include "mimo/train/run_trace.h"
#include "mimo/train/trainer.h"

namespace mimo {

void Trainer::SetProfiler(Profiler* profiler) {
  ctx_.profiler = profiler;
  stage_.SetProfiler(profiler);
  parallel_.SetProfiler(profiler);
}

void Trainer::StartProfile() {
  const bool all = options_.logging.trace.has_value();
  if (!profile_ && !all) return;
  // RunTrace: the profilers begin together.
  if (all && options_.world != nullptr) options_.world->Barrier(ctx_.compute);
  profiler_.emplace(ctx_.compute, /*modules=*/profile_.has_value());
  SetProfiler(&*profiler_);
}

absl::Status Trainer::EndProfile() {
  SetProfiler(nullptr);
  if (profile_) MIMO_RETURN_IF_ERROR(profile_->Append(profiler_->Trace()));
  if (options_.logging.trace) {
    MIMO_ASSIGN_OR_RETURN(
        const std::vector<std::string> parts,
        GatherTexts(options_.world, *ctx_.allocator, TracePart(*profiler_)));
    if (trace_) {
      const RunTrace trace = MergeTraces(parts);
      MIMO_RETURN_IF_ERROR(trace_->Append(trace.file));
      const double ideal = stage_.IdealBubble(
          options_.train.MicroBatches(options_.data_parallel_size),
          trace.times);
      traced_ = absl::StrFormat(
          "trace: bubble %.1f %% of the ranks' time, %.1f %% by the schedule "
          "from the measured times",
          100 * trace.bubble_share, 100 * ideal);
    }
  }
  profiler_.reset();
  return absl::OkStatus();
}

}  // namespace mimo
