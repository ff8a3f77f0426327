#include "mimo/train/trainer.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/atomic_file.h"
#include "mimo/checkpoint/checkpoint.h"

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

bool SameFolder(const std::string& a, const std::string& b) {
  std::error_code error;
  const std::filesystem::path x = a, y = b;
  return std::filesystem::weakly_canonical(x / "", error) ==
         std::filesystem::weakly_canonical(y / "", error);
}

// Makes the folder; finds out before the first iteration that it cannot be
// written.
absl::Status PrepareFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return FileError(path, "make the folder", error.value());
  if (access(path.c_str(), W_OK) != 0) {
    return FileError(path, "write into it", errno);
  }
  return absl::OkStatus();
}

TensorMap DataOf(const SliceMap& slices) {
  TensorMap data;
  for (const auto& [name, slice] : slices) data[name] = slice.data;
  return data;
}

double Mean(double sum, int64_t count) { return count > 0 ? sum / count : 0; }

}  // namespace

absl::StatusOr<double> Evaluate(TrainStage& stage, BatchSource& source,
                                int64_t micro_batches) {
  MIMO_RETURN_IF_ERROR(source.Seek(0));
  double sum = 0;
  int64_t labelled = 0;
  for (int64_t i = 0; i < micro_batches; ++i) {
    MIMO_ASSIGN_OR_RETURN(const MicroBatch batch, source.Next());
    MIMO_ASSIGN_OR_RETURN(const double loss, stage.Loss(batch));
    sum += loss;
    labelled += batch.LabelledTokens();
  }
  return Mean(sum, labelled);
}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(TrainerOptions options,
                                                         TrainStage& stage,
                                                         BatchSource& source,
                                                         Allocator& allocator) {
  MIMO_RETURN_IF_ERROR(options.train.Validate());
  MIMO_RETURN_IF_ERROR(options.optimizer.Validate());
  MIMO_RETURN_IF_ERROR(options.checkpoint.Validate());
  MIMO_RETURN_IF_ERROR(options.logging.Validate());
  auto trainer = absl::WrapUnique(
      new Trainer(std::move(options), stage, source, allocator));
  if (trainer->optimizer_.state().empty()) {
    return absl::InvalidArgumentError(
        "model: every parameter is frozen, wanted one to train");
  }
  MIMO_RETURN_IF_ERROR(trainer->Resume());
  MIMO_RETURN_IF_ERROR(trainer->OpenLogs());
  return trainer;
}

Trainer::Trainer(TrainerOptions options, TrainStage& stage, BatchSource& source,
                 Allocator& allocator)
    : options_(std::move(options)),
      stage_(stage),
      source_(source),
      ctx_{.allocator = &allocator},
      optimizer_(options_.optimizer, stage.Parameters(), allocator),
      progress_(options_.out, isatty(fileno(options_.out)) != 0) {}

absl::Status Trainer::Resume() {
  const CheckpointConfig& config = options_.checkpoint;
  if (config.save) {
    MIMO_RETURN_IF_ERROR(PrepareFolder(*config.save));
  }
  if (!config.load) return absl::OkStatus();
  const bool own = config.save && SameFolder(*config.load, *config.save);
  const absl::StatusOr<std::string> folder = FindCheckpoint(*config.load);
  if (absl::IsNotFound(folder.status()) && own) return absl::OkStatus();
  MIMO_RETURN_IF_ERROR(folder.status());
  MIMO_ASSIGN_OR_RETURN(const TrainState state, LoadTrainState(*folder));
  MIMO_RETURN_IF_ERROR(
      LoadTensors(*folder + "/model.safetensors", DataOf(stage_.Parameters())));
  optimizer_.SetMasters();
  // Converted weights have no run to go on with.
  if (state.iteration == 0) return absl::OkStatus();
  if (state.seed != options_.train.seed) {
    return absl::InvalidArgumentError(
        absl::StrCat("train.seed: ", options_.train.seed, ", wanted ",
                     state.seed, " as in ", *folder));
  }
  MIMO_RETURN_IF_ERROR(LoadTensors(*folder + "/optimizer.safetensors",
                                   DataOf(optimizer_.state())));
  optimizer_.Restore(state.optimizer_steps, state.skipped_iterations);
  iteration_ = state.iteration;
  consumed_samples_ = state.consumed_samples;
  if (own) saved_iteration_ = iteration_;
  progress_.Say(
      absl::StrCat("resumed from ", *folder,
                   iteration_ < options_.train.train_iters
                       ? ""
                       : ": train_iters are done, nothing is left to do"));
  return source_.Seek(consumed_samples_);
}

absl::Status Trainer::OpenLogs() {
  const LoggingConfig& logging = options_.logging;
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
  logged_iteration_ = iteration_;
  return absl::OkStatus();
}

void Trainer::StartProfile() {
  ctx_.profiler = &profiler_.emplace(ctx_.compute);
  stage_.SetProfiler(ctx_.profiler);
}

absl::Status Trainer::EndProfile() {
  stage_.SetProfiler(nullptr);
  ctx_.profiler = nullptr;
  const std::string trace = profiler_->Trace();
  profiler_.reset();
  return profile_->Append(trace);
}

absl::StatusOr<TrainResult> Trainer::Run() {
  const TrainConfig& train = options_.train;
  TrainResult result;
  const absl::Time start = SteadyNow();
  const int64_t first = iteration_;
  const int64_t profile_from = first + options_.logging.profile_after;
  while (iteration_ < train.train_iters && !result.stopped) {
    if (profile_ && iteration_ == profile_from) StartProfile();
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
    result.stopped = options_.stop_requested && options_.stop_requested();
  }
  if (profiler_) MIMO_RETURN_IF_ERROR(EndProfile());
  if (profile_ && iteration_ <= profile_from) {
    progress_.Say(absl::StrCat("logging.profile: only ", iteration_ - first,
                               " iterations were run, none was profiled"));
  }
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

absl::StatusOr<MicroBatch> Trainer::NextBatch() {
  const ProfileRange range(ctx_, "data");
  return source_.Next();
}

absl::StatusOr<Trainer::Step> Trainer::RunIteration() {
  const absl::Time start = SteadyNow();
  Step step = {};
  ProfileRange range(ctx_, absl::StrCat("iteration ", iteration_ + 1));
  // The loss is a mean over the whole global batch, so its labels are counted
  // before the first backward.
  std::vector<MicroBatch> batches;
  int64_t labelled = 0;
  for (int64_t i = 0; i < options_.train.MicroBatches(); ++i) {
    MIMO_ASSIGN_OR_RETURN(
        MicroBatch batch,
        next_ ? *std::exchange(next_, std::nullopt) : NextBatch());
    labelled += batch.LabelledTokens();
    step.tokens += Tokens(batch);
    consumed_samples_ += batch.batch;
    batches.push_back(std::move(batch));
  }
  const double loss_scale = labelled > 0 ? 1.0 / labelled : 0;
  double sum = 0;
  if (iteration_ + 1 < options_.train.train_iters) next_ = NextBatch();
  for (size_t i = 0; i < batches.size(); ++i) {
    const MicroBatch* next = next_ && next_->ok() ? &**next_ : nullptr;
    if (i + 1 < batches.size()) next = &batches[i + 1];
    MIMO_ASSIGN_OR_RETURN(const double loss,
                          stage_.ForwardBackward(batches[i], loss_scale, next));
    sum += loss;
  }
  step.lm_loss = Mean(sum, labelled);
  step.learning_rate =
      LearningRate(options_.optimizer, options_.train.train_iters, iteration_);
  {
    const ProfileRange update(ctx_, "update");
    if (std::isfinite(sum)) {
      optimizer_.Step(step.learning_rate);
    } else {
      optimizer_.Skip();
    }
    step.grad_norm = optimizer_.norm();
  }
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
        Evaluate(stage_, *options_.validation,
                 options_.train.eval_iters * options_.train.MicroBatches()));
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

absl::Status Trainer::Save() {
  if (!options_.checkpoint.save || saved_iteration_ == iteration_) {
    return absl::OkStatus();
  }
  const Checkpoint checkpoint = {
      .state = {.iteration = iteration_,
                .consumed_samples = consumed_samples_,
                .optimizer_steps = optimizer_.steps(),
                .skipped_iterations = optimizer_.skipped(),
                .seed = options_.train.seed},
      .model = DataOf(stage_.Parameters()),
      .optimizer = DataOf(optimizer_.state()),
      .metadata = options_.checkpoint_metadata,
      .files = options_.checkpoint_files};
  MIMO_RETURN_IF_ERROR(SaveCheckpoint(*options_.checkpoint.save, checkpoint,
                                      options_.checkpoint.keep));
  saved_iteration_ = iteration_;
  return absl::OkStatus();
}

}  // namespace mimo
