#include "mimo/train/trainer.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "kernels/base/status_macros.h"
#include "mimo/parallel/sum_over_ranks.h"

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
      optimizer_(options_.optimizer, ParamGroups(), options_.world, allocator),
      progress_(FirstRank() ? options_.out : nullptr,
                isatty(fileno(options_.out)) != 0) {}

std::vector<ParamGroup> Trainer::ParamGroups() const {
  std::vector<ParamGroup> groups;
  const std::vector<DataParallelModule>& modules = parallel_.modules();
  for (size_t m = 0; m < modules.size(); ++m) {
    const auto found = options_.optimizer.modules.find(modules[m].name);
    const ModuleOptimizerConfig config =
        found == options_.optimizer.modules.end() ? ModuleOptimizerConfig()
                                                  : found->second;
    groups.push_back({.shards = parallel_.shards(m),
                      .lr_mult = config.lr_mult,
                      .wd_mult = config.wd_mult});
  }
  return groups;
}

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
  TrainResult result;
  const absl::Time start = SteadyNow();
  const int64_t first = iteration_;
  const int64_t profile_from = first + options_.logging.profile_after;
  while (iteration_ < train.train_iters && !result.stopped) {
    if (iteration_ == profile_from) StartProfile();
    if (profiler_) profiler_->BeginIteration(iteration_ + 1);
    MIMO_ASSIGN_OR_RETURN(const Step step, RunIteration());
    if (profiler_ &&
        iteration_ == profile_from + options_.logging.profile_iters) {
      MIMO_RETURN_IF_ERROR(EndProfile());
    }
    result.lm_loss = step.lm_loss;
    MIMO_RETURN_IF_ERROR(CountSkipped(step));
    MIMO_RETURN_IF_ERROR(Log(step));
    const absl::Time now = SteadyNow();
    if (options_.logging.progress) {
      progress_.Update(
          {.iteration = iteration_,
           .total = train.train_iters,
           .lm_loss = step.lm_loss,
           .learning_rate = step.learning_rate,
           .tokens_per_second = step.tokens / absl::ToDoubleSeconds(step.time),
           .left = (now - start) / (iteration_ - first) *
                   (train.train_iters - iteration_)},
          now);
    }
    if (train.eval_interval > 0 && iteration_ % train.eval_interval == 0) {
      MIMO_RETURN_IF_ERROR(Validate());
    }
    const int64_t save_interval = options_.checkpoint.save_interval;
    if (save_interval > 0 && iteration_ % save_interval == 0) {
      MIMO_RETURN_IF_ERROR(Save());
    }
    const int64_t check_interval = train.check_replicas_interval;
    if (check_interval > 0 && iteration_ % check_interval == 0) {
      MIMO_RETURN_IF_ERROR(parallel_.CheckReplicas());
    }
    result.stopped = step.stop;
  }
  if (profiler_) MIMO_RETURN_IF_ERROR(EndProfile());
  for (const char* key : {profile_ ? "profile" : "", trace_ ? "trace" : ""}) {
    if (*key == 0 || iteration_ > profile_from) continue;
    progress_.Say(absl::StrCat("logging.", key, ": only ", iteration_ - first,
                               " iterations were run, none was profiled"));
  }
  if (!traced_.empty()) progress_.Say(traced_);
  MIMO_RETURN_IF_ERROR(Save());
  if (result.stopped) {
    progress_.Say(absl::StrCat(
        "stopped after iteration ", iteration_, " of ", train.train_iters,
        options_.checkpoint.save
            ? absl::StrCat(", saved in ", *options_.checkpoint.save)
            : ", not saved"));
  }
  result.iteration = iteration_;
  result.consumed_samples = consumed_samples_;
  return result;
}

absl::Status Trainer::Health() const {
  if (options_.world != nullptr) MIMO_RETURN_IF_ERROR(options_.world->Health());
  return parallel_.Health();
}

absl::Status Trainer::Sum(absl::Span<double> values) {
  if (options_.world == nullptr) return absl::OkStatus();
  const ProfileRange range(ctx_, "sum", options_.world->members());
  return SumOverRanks(options_.world, *ctx_.allocator, values);
}

absl::StatusOr<MicroBatch> Trainer::NextBatch() {
  const ProfileRange range(ctx_, "data");
  return source_.Next();
}

absl::StatusOr<Trainer::Step> Trainer::RunIteration() {
  const absl::Time start = SteadyNow();
  Step step = {};
  ProfileRange range(ctx_, absl::StrCat("iteration ", iteration_ + 1));
  // The loss is a mean over the whole global batch, so its labels are counted,
  // on all ranks, before the first backward.
  std::vector<MicroBatch> batches;
  double counts[2] = {};  // labelled tokens, all tokens
  const int64_t replicas = options_.data_parallel_size;
  for (int64_t i = 0; i < options_.train.MicroBatches(replicas); ++i) {
    MIMO_ASSIGN_OR_RETURN(
        MicroBatch batch,
        next_ ? *std::exchange(next_, std::nullopt) : NextBatch());
    if (stage_.CountsTokens()) {
      counts[0] += batch.LabelledTokens();
      counts[1] += Tokens(batch);
    }
    batches.push_back(std::move(batch));
  }
  consumed_samples_ += options_.train.global_batch_size;
  MIMO_RETURN_IF_ERROR(Sum(absl::MakeSpan(counts)));
  const double loss_scale = counts[0] > 0 ? 1 / counts[0] : 0;
  step.tokens = static_cast<int64_t>(counts[1]);
  double ends[2] = {};  // losses, ranks asked to stop
  if (iteration_ + 1 < options_.train.train_iters) next_ = NextBatch();
  MIMO_ASSIGN_OR_RETURN(
      const Tensor loss,
      stage_.ForwardBackward(
          batches, Tensor::From<double>(*ctx_.allocator, {1}, {loss_scale}),
          {.next = next_ && next_->ok() ? &**next_ : nullptr,
           .before_last_backward = [&](const std::string& module) {
             parallel_.BeginLastBackward(module);
           }}));
  parallel_.FinishGradSync();
  Allocator host;
  ends[0] = loss.Clone(host).span<double>()[0];
  ends[1] = options_.stop_requested && options_.stop_requested() ? 1 : 0;
  MIMO_RETURN_IF_ERROR(Sum(absl::MakeSpan(ends)));
  MIMO_RETURN_IF_ERROR(Health());
  step.lm_loss = Mean(ends[0], counts[0]);
  step.stop = ends[1] > 0;
  step.learning_rate =
      LearningRate(options_.optimizer, options_.train.train_iters, iteration_);
  {
    const ProfileRange update(ctx_, "update");
    optimizer_.Step(
        step.learning_rate,
        Tensor::From<double>(*ctx_.allocator, {1}, absl::MakeSpan(ends, 1)));
    parallel_.GatherParameters();
    step.grad_norm = optimizer_.norm();
  }
  MIMO_RETURN_IF_ERROR(Health());
  for (Parameter* parameter : stage_.Parameters()) parameter->ForgetGrad();
  ++iteration_;
  step.time = SteadyNow() - start;
  range.Set("lm_loss", step.lm_loss);
  range.Set("tokens", step.tokens);
  return step;
}

absl::Status Trainer::CountSkipped(const Step& step) {
  if (std::isfinite(step.grad_norm)) {
    skipped_in_a_row_ = 0;
    return absl::OkStatus();
  }
  const std::string what =
      absl::StrCat("iteration ", iteration_, ": loss ", step.lm_loss,
                   ", gradient norm ", step.grad_norm);
  if (++skipped_in_a_row_ == kMostSkippedInARow) {
    return absl::InternalError(
        absl::StrCat(what, ", wanted finite: no update for ",
                     kMostSkippedInARow, " iterations, giving up"));
  }
  progress_.Say(
      absl::StrCat(what, ": no update (", optimizer_.skipped(), " so far)"));
  return absl::OkStatus();
}

absl::Status Trainer::Log(const Step& step) {
  tokens_ += step.tokens;
  time_ += step.time;
  if (iteration_ % options_.logging.log_interval != 0) return absl::OkStatus();
  const double seconds = absl::ToDoubleSeconds(time_);
  const int64_t iterations = iteration_ - logged_iteration_;
  logged_iteration_ = iteration_;
  MetricValues values = {
      {"lm_loss", step.lm_loss},
      {"learning_rate", step.learning_rate},
      {"grad_norm", step.grad_norm},
      {"consumed_samples", consumed_samples_},
      {"skipped_iterations", optimizer_.skipped()},
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
    MIMO_RETURN_IF_ERROR(metrics_->Write(iteration_, split, values));
  }
  if (events_) {
    const std::string prefix = split.empty() ? "" : absl::StrCat(split, "/");
    MIMO_RETURN_IF_ERROR(
        events_->Write(iteration_, prefix, values, absl::Now()));
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
  if (options_.task_metrics && FirstRank()) {
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
