// Trainer: the loop. An iteration gathers the micro-batches of one global
// batch, runs forward and backward of each, updates once, and writes its
// numbers; now and then it validates and saves.
//
// Of several ranks each runs its own part of every global micro-batch. What
// depends on all of them (labelled tokens, losses, a stop) is added up over the
// ranks, so all go the same way; one rank is a sum of one.
//
// An iteration is enqueued without a wait: what later work depends on (the
// loss's scale, whether to update) is decided on the device. Its numbers are
// waited for behind it, or, running ahead, behind the next iteration's
// enqueuing, and before anything else looks at the run (docs/adr/0014).
#ifndef MIMO_MIMO_TRAIN_TRAINER_H_
#define MIMO_MIMO_TRAIN_TRAINER_H_

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "comm/base/communicator.h"
#include "kernels/base/device.h"
#include "kernels/optim/tensor_list.h"
#include "mimo/autograd/profiler.h"
#include "mimo/nn/tensor_slice.h"
#include "mimo/optim/adamw.h"
#include "mimo/optim/optimizer_config.h"
#include "mimo/parallel/distributed_data_parallel.h"
#include "mimo/tensor/tensor.h"
#include "mimo/train/append_file.h"
#include "mimo/train/batch_source.h"
#include "mimo/train/event_file.h"
#include "mimo/train/metrics_file.h"
#include "mimo/train/progress.h"
#include "mimo/train/train_config.h"
#include "mimo/train/train_stage.h"

namespace mimo {

struct TrainerOptions {
  TrainConfig train;
  OptimizerConfig optimizer;
  CheckpointConfig checkpoint;
  LoggingConfig logging;

  // Validates every eval_interval iterations, from its first sample each time.
  BatchSource* validation = nullptr;
  // Measured beside the validation loss: the task's own metrics, by all ranks
  // together.
  std::function<absl::StatusOr<MetricValues>()> task_metrics;
  // Kept in each checkpoint: metadata of its model.safetensors, and files by
  // name (the configuration, the tokenizer).
  std::map<std::string, std::string> checkpoint_metadata, checkpoint_files;
  // Asked in each iteration; true on any rank: all save and return after it,
  // or the next one if that has begun (StopSignal).
  std::function<bool()> stop_requested;
  // Each iteration is enqueued before the one before it is waited for, so that
  // a GPU never waits for the host.
  bool run_ahead = false;
  std::FILE* out = stderr;  // progress and messages
  // When the program began: until the first iteration is done is its start-up.
  std::chrono::steady_clock::time_point began =
      std::chrono::steady_clock::now();

  // All ranks of the run, each with a trainer of the same options; null: one
  // rank. Rank 0 writes logs and messages.
  Communicator* world = nullptr;
  // Replicas of the language model, which share each global batch.
  int64_t data_parallel_size = 1;
};

struct TrainResult {
  int64_t iteration = 0;  // updates tried, earlier runs' included
  int64_t consumed_samples = 0;
  double lm_loss = 0;    // of the last iteration; 0 if there was none
  bool stopped = false;  // by stop_requested
};

class Trainer {
 public:
  // Takes up the run in checkpoint.load, if there is one, and opens the logs.
  // `parallel` has the stage's parameters. It, `stage`, `source` and what
  // `options` points to outlive the trainer.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(
      TrainerOptions options, TrainStage& stage,
      DistributedDataParallel& parallel, BatchSource& source,
      Allocator& allocator);

  // To train_iters or a requested stop; saves there if checkpoint.save is set.
  absl::StatusOr<TrainResult> Run();

  int64_t iteration() const { return iteration_; }

 private:
  // One iteration's numbers (docs/metrics.md).
  struct Step {
    int64_t iteration, consumed_samples;
    double lm_loss, learning_rate, grad_norm;
    int64_t tokens;   // of all ranks
    int64_t skipped;  // iterations so far
    bool stop;        // a rank was asked to
    absl::Duration time;
  };
  // What the device finds out: sums over the ranks, and the update.
  struct Found {
    double labelled, tokens;  // before the forward
    double loss, stops;       // after the backward
    kernels::AdamWControl update;
  };
  // An iteration that has been enqueued.
  struct Pending {
    Step step;  // what the host knows of it
    Event begin, end;
    Tensor found;  // a Found, on the device
  };

  Trainer(TrainerOptions options, TrainStage& stage,
          DistributedDataParallel& parallel, BatchSource& source,
          Allocator& allocator);
  bool FirstRank() const {
    return options_.world == nullptr || options_.world->rank() == 0;
  }
  absl::Status Resume();
  absl::Status OpenLogs();
  // Measures from now on; null: not any more.
  void SetProfiler(Profiler* profiler);
  void StartProfile();
  absl::Status EndProfile();
  // Over all ranks; two values in the device's memory.
  void SumPair(double* values);
  absl::Status Health() const;  // of every group of ranks
  absl::StatusOr<MicroBatch> NextBatch();
  // The one that comes i after those that were taken. An error: it or one
  // before it cannot be read.
  absl::StatusOr<const MicroBatch*> ReadAhead(size_t i);
  absl::StatusOr<Pending> EnqueueIteration();
  // Waits for its numbers.
  absl::StatusOr<Step> Await(const Pending& iteration);
  // Waits for the iteration that is under way, if one is, and reports it.
  absl::Status Finish();
  absl::Status CountSkipped(const Step& step);
  absl::Status Log(const Step& step);
  absl::Status Write(absl::string_view split, const MetricValues& values);
  absl::Status Validate();
  SliceMap ModelSlices();
  absl::Status Save();

  TrainerOptions options_;
  TrainStage& stage_;
  DistributedDataParallel& parallel_;
  BatchSource& source_;
  std::deque<absl::StatusOr<MicroBatch>> next_;  // read ahead
  Context ctx_;
  Stream reads_;  // of numbers, beside the work of the next iteration
  AdamW optimizer_;
  Progress progress_;
  std::optional<MetricsFile> metrics_;
  std::optional<EventFile> events_;
  std::optional<AppendFile> profile_, trace_;
  std::optional<Profiler> profiler_;  // while it measures
  std::string traced_;                // what the trace says in short

  int64_t iteration_ = 0;  // enqueued
  int64_t consumed_samples_ = 0;
  std::optional<Pending> pending_;
  TrainResult result_;  // of the iterations that were waited for
  int64_t first_ = 0;   // done when Run began
  absl::Time start_;    // when that was
  int64_t saved_iteration_ = -1;
  int64_t skipped_in_a_row_ = 0;

  // Since the last metrics line.
  int64_t logged_iteration_ = 0;
  int64_t tokens_ = 0;
  absl::Duration time_;
};

// The mean loss over the labelled tokens of the stream's first `iterations`
// times `micro_batches` micro-batches, of all ranks of `world`; 0 if none is
// labelled.
absl::StatusOr<double> Evaluate(TrainStage& stage, BatchSource& source,
                                int64_t iterations, int64_t micro_batches,
                                Communicator* world, Allocator& allocator);

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_TRAINER_H_
