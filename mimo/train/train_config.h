// The `train:`, `checkpoint:` and `logging:` keys of a run.
#ifndef MIMO_MIMO_TRAIN_TRAIN_CONFIG_H_
#define MIMO_MIMO_TRAIN_TRAIN_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "mimo/config/fields.h"

namespace mimo {

struct TrainConfig {
  int64_t train_iters = 100;
  int64_t micro_batch_size = 1;  // samples of a forward and backward, a replica
  int64_t global_batch_size = 1;  // samples of one update
  int64_t seed = 1234;
  std::string device = "auto";    // cpu, cuda; auto: the GPU if there is one
  std::string dtype = "float32";  // bfloat16 too on a GPU
  // A file of GEMM algorithms: a GPU measures those of each new shape and keeps
  // them there; absent: the library's first choice.
  std::optional<std::string> gemm_plans;
  bool cuda_graph = true;       // a GPU: capture a pass, replay it
  bool pack_sequences = false;  // no padding between a micro-batch's samples
  int64_t eval_interval = 0;    // iterations between validations; 0: none
  int64_t eval_iters = 10;      // global batches of one validation
  // Micro-batches by which frozen encoders run ahead of what they feed.
  int64_t encoder_run_ahead = 2;
  // Iterations between checks that replicas have the same bits; 0: none.
  int64_t check_replicas_interval = 0;
  double distributed_timeout_minutes = 10;  // of one collective

  template <typename V>
  void Fields(V& v) {
    v("train_iters", train_iters);
    v("micro_batch_size", micro_batch_size);
    v("global_batch_size", global_batch_size);
    v("seed", seed);
    v("device", device);
    v("dtype", dtype);
    v("gemm_plans", gemm_plans);
    v("cuda_graph", cuda_graph);
    v("pack_sequences", pack_sequences);
    v("eval_interval", eval_interval);
    v("eval_iters", eval_iters);
    v("encoder_run_ahead", encoder_run_ahead);
    v("check_replicas_interval", check_replicas_interval);
    v("distributed_timeout_minutes", distributed_timeout_minutes);
  }
  absl::Status Validate() const;
  // Of an iteration, on each of the replicas that share the global batch.
  int64_t MicroBatches(int64_t data_parallel_size = 1) const {
    return global_batch_size / (micro_batch_size * data_parallel_size);
  }
};

struct CheckpointConfig {
  // The folder to save in; absent: nothing is saved.
  std::optional<std::string> save;
  // The folder to resume from. It must hold a checkpoint, unless it is `save`
  // itself: then a run that finds none starts fresh, so one command starts a
  // run and resumes it.
  std::optional<std::string> load;
  int64_t save_interval = 0;  // iterations; 0: at the end only
  int64_t keep = 0;           // newest checkpoints to keep; 0: all

  template <typename V>
  void Fields(V& v) {
    v("save", save);
    v("load", load);
    v("save_interval", save_interval);
    v("keep", keep);
  }
  absl::Status Validate() const;
};

struct LoggingConfig {
  int64_t log_interval = 1;                    // iterations between metrics
  std::optional<std::string> metrics;          // JSONL file
  std::optional<std::string> tensorboard_dir;  // folder of event files
  bool progress = true;                        // on stderr
  // What profile_iters iterations did, when profile_after of this run are done:
  // rank 0 and its modules, all ranks. JSON files.
  std::optional<std::string> profile, trace;
  int64_t profile_after = 2;
  int64_t profile_iters = 3;

  template <typename V>
  void Fields(V& v) {
    v("log_interval", log_interval);
    v("metrics", metrics);
    v("tensorboard_dir", tensorboard_dir);
    v("progress", progress);
    v("profile", profile);
    v("trace", trace);
    v("profile_after", profile_after);
    v("profile_iters", profile_iters);
  }
  absl::Status Validate() const;
};

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_TRAIN_CONFIG_H_
