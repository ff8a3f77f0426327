#include "mimo/train/trainer.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "kernels/base/status_macros.h"
#include "kernels/loss/loss_mean.h"
#include "mimo/parallel/sum_over_ranks.h"
#include "mimo/train/param_groups.h"

namespace mimo {
namespace {

// After as many iterations in a row without an update the rest would go the
// same way.
constexpr int64_t kMostSkippedInARow = 10;

// Tokens before the padding, over all samples.
int64_t Tokens(const MicroBatch& batch) {
  int64_t tokens = 0;
  for (int32_t length : batch.lengths) tokens += length;
  return tokens;
}

// For durations: no one sets this clock.
absl::Time SteadyNow() {
  return absl::UnixEpoch() +
         absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

double Mean(double sum, double count) { return count > 0 ? sum / count : 0; }

}  // namespace

absl::StatusOr<double> Evaluate(TrainStage& stage, BatchSource& source,
                                int64_t iterations, int64_t micro_batches,
                                Communicator* world, Allocator& allocator) {
  MIMO_RETURN_IF_ERROR(source.Seek(0));
  double sums[2] = {};  // losses, labelled tokens
  for (int64_t i = 0; i < iterations; ++i) {
    std::vector<MicroBatch> batches(micro_batches);
    for (MicroBatch& batch : batches) {
      MIMO_ASSIGN_OR_RETURN(batch, source.Next());
      if (stage.CountsTokens()) sums[1] += batch.LabelledTokens();
    }
    MIMO_ASSIGN_OR_RETURN(const double loss, stage.Loss(batches));
    sums[0] += loss;
  }
  MIMO_RETURN_IF_ERROR(SumOverRanks(world, allocator, absl::MakeSpan(sums)));
  return Mean(sums[0], sums[1]);
}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(
    TrainerOptions options, TrainStage& stage,
    DistributedDataParallel& parallel, BatchSource& source,
    Allocator& allocator) {
  MIMO_RETURN_IF_ERROR(options.train.Validate());
  MIMO_RETURN_IF_ERROR(options.optimizer.Validate());
  MIMO_RETURN_IF_ERROR(options.checkpoint.Validate());
  MIMO_RETURN_IF_ERROR(options.logging.Validate());
  const TrainConfig& train = options.train;
  if (train.global_batch_size %
          (train.micro_batch_size * options.data_parallel_size) !=
      0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "train.global_batch_size: ", train.global_batch_size,
        ", wanted a multiple of micro_batch_size ", train.micro_batch_size,
        " x data_parallel_size ", options.data_parallel_size));
  }
  double trained = 0;
  for (const Parameter* parameter : stage.Parameters())
    trained += !parameter->frozen;
  MIMO_RETURN_IF_ERROR(
      SumOverRanks(options.world, allocator, absl::MakeSpan(&trained, 1)));
  if (trained == 0) {
    return absl::InvalidArgumentError(
        "model: every parameter is frozen, wanted one to train");
  }
  auto trainer = absl::WrapUnique(
      new Trainer(std::move(options), stage, parallel, source, allocator));
  MIMO_RETURN_IF_ERROR(trainer->Resume());
  MIMO_RETURN_IF_ERROR(trainer->OpenLogs());
  return trainer;
}

Trainer::Trainer(TrainerOptions options, TrainStage& stage,
                 DistributedDataParallel& parallel, BatchSource& source,
                 Allocator& allocator)
    : options_(std::move(options)),
      stage_(stage),
      parallel_(parallel),
      source_(source),
      ctx_{.allocator = &allocator},
      reads_(NewStream(ctx_.compute.device)),
      optimizer_(options_.optimizer,
                 ParamGroupsOf(parallel, options_.optimizer.modules),
                 options_.world, allocator),
      progress_(FirstRank() ? options_.out : nullptr,
                isatty(fileno(options_.out)) != 0) {}

absl::Status Trainer::OpenLogs() {
  const LoggingConfig& logging = options_.logging;
  logged_iteration_ = iteration_;
  if (!FirstRank()) return absl::OkStatus();
  if (logging.metrics) {
    MIMO_ASSIGN_OR_RETURN(metrics_,
                          MetricsFile::Open(*logging.metrics, iteration_));
  }
  if (logging.tensorboard_dir) {
    MIMO_ASSIGN_OR_RETURN(
        events_,
        EventFile::Open(*logging.tensorboard_dir, iteration_ + 1, absl::Now()));
  }
  if (logging.profile) {
    MIMO_ASSIGN_OR_RETURN(profile_, AppendFile::Open(*logging.profile, 0));
  }
  if (logging.trace) {
    MIMO_ASSIGN_OR_RETURN(trace_, AppendFile::Open(*logging.trace, 0));
  }
  return absl::OkStatus();
}

absl::StatusOr<TrainResult> Trainer::Run() {
  const TrainConfig& train = options_.train;
  result_ = {.iteration = iteration_, .consumed_samples = consumed_samples_};
  start_ = SteadyNow();
  first_ = iteration_;
  const int64_t profile_from = first_ + options_.logging.profile_after;
  const auto due = [this](int64_t interval) {
    return interval > 0 && iteration_ % interval == 0;
  };
  while (iteration_ < train.train_iters && !result_.stopped) {
    if (iteration_ == profile_from) StartProfile();
    if (profiler_) profiler_->BeginIteration(iteration_ + 1);
    absl::StatusOr<Pending> next = EnqueueIteration();
    // The one before, also where this one failed.
    MIMO_RETURN_IF_ERROR(Finish());
    MIMO_ASSIGN_OR_RETURN(pending_, std::move(next));
    if (profiler_ &&
        iteration_ == profile_from + options_.logging.profile_iters) {
      MIMO_RETURN_IF_ERROR(EndProfile());
    }
    const bool validate = due(train.eval_interval);
    const bool save = due(options_.checkpoint.save_interval);
    const bool check = due(train.check_replicas_interval);
    if (!options_.run_ahead || validate || save || check)
      MIMO_RETURN_IF_ERROR(Finish());
    if (validate) MIMO_RETURN_IF_ERROR(Validate());
    if (save) MIMO_RETURN_IF_ERROR(Save());
    if (check) MIMO_RETURN_IF_ERROR(parallel_.CheckReplicas());
  }
  MIMO_RETURN_IF_ERROR(Finish());
  if (profiler_) MIMO_RETURN_IF_ERROR(EndProfile());
  for (const char* key : {profile_ ? "profile" : "", trace_ ? "trace" : ""}) {
    if (*key == 0 || iteration_ > profile_from) continue;
    progress_.Say(absl::StrCat("logging.", key, ": only ", iteration_ - first_,
                               " iterations were run, none was profiled"));
  }
  if (!traced_.empty()) progress_.Say(traced_);
  MIMO_RETURN_IF_ERROR(Save());
  if (result_.stopped) {
    progress_.Say(absl::StrCat(
        "stopped after iteration ", iteration_, " of ", train.train_iters,
        options_.checkpoint.save
            ? absl::StrCat(", saved in ", *options_.checkpoint.save)
            : ", not saved"));
  }
  return result_;
}

absl::Status Trainer::Finish() {
  if (!pending_) return absl::OkStatus();
  MIMO_ASSIGN_OR_RETURN(const Step step,
                        Await(*std::exchange(pending_, std::nullopt)));
  result_ = {.iteration = step.iteration,
             .consumed_samples = step.consumed_samples,
             .lm_loss = step.lm_loss,
             .stopped = result_.stopped || step.stop};
  MIMO_RETURN_IF_ERROR(CountSkipped(step));
  MIMO_RETURN_IF_ERROR(Log(step));
  if (!options_.logging.progress) return absl::OkStatus();
  if (step.iteration == first_ + 1) {
    const std::chrono::duration<double> start_up =
        std::chrono::steady_clock::now() - options_.began;
    progress_.Say(
        absl::StrFormat("first iteration done after %.1f s", start_up.count()));
  }
  const absl::Time now = SteadyNow();
  const int64_t total = options_.train.train_iters;
  progress_.Update(
      {.iteration = step.iteration,
       .total = total,
       .lm_loss = step.lm_loss,
       .learning_rate = step.learning_rate,
       .tokens_per_second = step.tokens / absl::ToDoubleSeconds(step.time),
       .left = (now - start_) / (step.iteration - first_) *
               (total - step.iteration)},
      now);
  return absl::OkStatus();
}

absl::Status Trainer::Health() const {
  if (options_.world != nullptr) MIMO_RETURN_IF_ERROR(options_.world->Health());
  return parallel_.Health();
}

void Trainer::SumPair(double* values) {
  if (options_.world == nullptr) return;
  const ProfileRange range(ctx_, "sum", options_.world->members());
  options_.world->AllReduce(values, values, 2, DType::kFloat64, ReduceOp::kSum,
                            ctx_.compute);
}

absl::StatusOr<MicroBatch> Trainer::NextBatch() {
  const ProfileRange range(ctx_, "data");
  return source_.Next();
}

absl::StatusOr<const MicroBatch*> Trainer::ReadAhead(size_t i) {
  while (next_.size() <= i && (next_.empty() || next_.back().ok()))
    next_.push_back(NextBatch());
  const auto& batch = i < next_.size() ? next_[i] : next_.back();
  MIMO_RETURN_IF_ERROR(batch.status());
  return &*batch;
}

absl::StatusOr<Trainer::Pending> Trainer::EnqueueIteration() {
  Pending pending = {
      .step = {.iteration = iteration_ + 1},
      .begin = RecordEvent(ctx_.compute),
      .found = Tensor(*ctx_.allocator, {sizeof(Found)}, DType::kUInt8)};
  Step& step = pending.step;
  ProfileRange range(ctx_, absl::StrCat("iteration ", step.iteration));
  Found own = {};
  std::vector<MicroBatch> batches;
  const int64_t all = options_.train.MicroBatches(options_.data_parallel_size);
  for (int64_t i = 0; i < all; ++i) {
    if (next_.empty()) next_.push_back(NextBatch());
    MIMO_ASSIGN_OR_RETURN(batches.emplace_back(), std::move(next_.front()));
    next_.pop_front();
    if (stage_.CountsTokens()) {
      own.labelled += batches.back().LabelledTokens();
      own.tokens += Tokens(batches.back());
    }
  }
  step.consumed_samples = consumed_samples_ += options_.train.global_batch_size;
  // The loss is a mean over the whole global batch, so its labels are counted,
  // on all ranks, before the first backward.
  Found* const found = static_cast<Found*>(pending.found.data());
  CopyBytes(found, &own, sizeof(own), ctx_.compute);
  SumPair(&found->labelled);
  const Tensor loss_scale(*ctx_.allocator, {1}, DType::kFloat64);
  kernels::LossScale(
      {.labelled = &found->labelled, .scale = loss_scale.pointer<double>()},
      ctx_.compute);
  const int64_t left = (options_.train.train_iters - step.iteration) * all;
  MIMO_ASSIGN_OR_RETURN(
      const Tensor loss,
      stage_.ForwardBackward(
          batches, loss_scale,
          {.next = [&](int i) -> absl::StatusOr<const MicroBatch*> {
             if (i >= left) return nullptr;
             return ReadAhead(i);
           },
           .before_last_backward =
               [&](const std::string& module) {
                 parallel_.BeginLastBackward(module);
               },
           .after_last_backward = [&] { parallel_.EndLastBackward(); }}));
  parallel_.FinishGradSync();
  own.stops = options_.stop_requested && options_.stop_requested() ? 1 : 0;
  CopyBytes(&found->loss, loss.data(), sizeof(double), ctx_.compute);
  CopyBytes(&found->stops, &own.stops, sizeof(double), ctx_.compute);
  SumPair(&found->loss);
  step.learning_rate =
      LearningRate(options_.optimizer, options_.train.train_iters, iteration_);
  {
    const ProfileRange update(ctx_, "update");
    optimizer_.Step(step.learning_rate, &found->loss);
    optimizer_.CopyControl(&found->update);
    parallel_.GatherParameters();
  }
  for (Parameter* parameter : stage_.Parameters()) parameter->ForgetGrad();
  pending.end = RecordEvent(ctx_.compute);
  if (profiler_) {  // shows them, so that nothing runs ahead
    MIMO_ASSIGN_OR_RETURN(const Step done, Await(pending));
    range.Set("lm_loss", done.lm_loss);
    range.Set("tokens", done.tokens);
  }
  ++iteration_;
  return pending;
}

absl::StatusOr<Trainer::Step> Trainer::Await(const Pending& iteration) {
  Found found;
  WaitFor(reads_, iteration.end);
  CopyBytes(&found, iteration.found.data(), sizeof(found), reads_);
  Synchronize(reads_);
  MIMO_RETURN_IF_ERROR(Health());
  Step step = iteration.step;
  step.lm_loss = Mean(found.loss, found.labelled);
  step.grad_norm = found.update.norm;
  step.tokens = static_cast<int64_t>(found.tokens);
  step.skipped = found.update.skipped;
  step.stop = found.stops > 0;
  step.time = absl::Seconds(SecondsBetween(iteration.begin, iteration.end));
  return step;
}

absl::Status Trainer::CountSkipped(const Step& step) {
  if (std::isfinite(step.grad_norm)) {
    skipped_in_a_row_ = 0;
    return absl::OkStatus();
  }
  const std::string what =
      absl::StrCat("iteration ", step.iteration, ": loss ", step.lm_loss,
                   ", gradient norm ", step.grad_norm);
  if (++skipped_in_a_row_ == kMostSkippedInARow) {
    return absl::InternalError(
        absl::StrCat(what, ", wanted finite: no update for ",
                     kMostSkippedInARow, " iterations, giving up"));
  }
  progress_.Say(absl::StrCat(what, ": no update (", step.skipped, " so far)"));
  return absl::OkStatus();
}

absl::Status Trainer::Log(const Step& step) {
  tokens_ += step.tokens;
  time_ += step.time;
  if (step.iteration % options_.logging.log_interval != 0)
    return absl::OkStatus();
  const double seconds = absl::ToDoubleSeconds(time_);
  const int64_t iterations = step.iteration - logged_iteration_;
  logged_iteration_ = step.iteration;
  MetricValues values = {
      {"lm_loss", step.lm_loss},
      {"learning_rate", step.learning_rate},
      {"grad_norm", step.grad_norm},
      {"consumed_samples", step.consumed_samples},
      {"skipped_iterations", step.skipped},
      {"tokens_per_second", tokens_ / seconds},
      {"iteration_time_ms", 1e3 * seconds / iterations},
  };
  tokens_ = 0;
  time_ = absl::ZeroDuration();
  return Write("", values);
}

absl::Status Trainer::Write(absl::string_view split,
                            const MetricValues& values) {
  if (metrics_) {
    MIMO_RETURN_IF_ERROR(metrics_->Write(result_.iteration, split, values));
  }
  if (events_) {
    const std::string prefix = split.empty() ? "" : absl::StrCat(split, "/");
    MIMO_RETURN_IF_ERROR(
        events_->Write(result_.iteration, prefix, values, absl::Now()));
  }
  return absl::OkStatus();
}

absl::Status Trainer::Validate() {
  MetricValues values;
  if (options_.validation != nullptr) {
    MIMO_ASSIGN_OR_RETURN(
        const double loss,
        Evaluate(stage_, *options_.validation, options_.train.eval_iters,
                 options_.train.MicroBatches(options_.data_parallel_size),
                 options_.world, *ctx_.allocator));
    values.emplace_back("lm_loss", loss);
  }
  if (options_.task_metrics) {
    MIMO_ASSIGN_OR_RETURN(const MetricValues task, options_.task_metrics());
    values.insert(values.end(), task.begin(), task.end());
  }
  std::string line = absl::StrCat("iteration ", iteration_, " validation:");
  for (const auto& [name, value] : values) {
    absl::StrAppend(&line, " ", name, " ", value);
  }
  progress_.Say(line);
  return Write("validation", values);
}

}  // namespace mimo
