#include "mimo/train/train_config.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace mimo {
namespace {

template <typename Config>
void ExpectMessages(
    const std::vector<std::pair<std::function<void(Config&)>, std::string>>&
        cases) {
  EXPECT_TRUE(Config().Validate().ok());
  for (const auto& [edit, message] : cases) {
    Config config;
    edit(config);
    const absl::Status status = config.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_EQ(status.message(), message);
  }
}

TEST(TrainConfig, SaysWhatIsWrong) {
  ExpectMessages<TrainConfig>({
      {[](auto& c) { c.train_iters = 0; }, "train_iters: 0, wanted 1 or more"},
      {[](auto& c) { c.micro_batch_size = 0; },
       "micro_batch_size: 0, wanted 1 or more"},
      {[](auto& c) { c.global_batch_size = -4; },
       "global_batch_size: -4, wanted 1 or more"},
      {[](auto& c) {
         c.global_batch_size = 10;
         c.micro_batch_size = 4;
       },
       "global_batch_size: 10, wanted a multiple of micro_batch_size, 4"},
      {[](auto& c) { c.seed = -1; }, "seed: -1, wanted 0 or more"},
      {[](auto& c) { c.dtype = "fp8"; },
       "dtype: fp8, wanted float32, bfloat16 or float64"},
      {[](auto& c) { c.dtype = "float16"; },
       "dtype: float16, wanted float32, bfloat16 or float64"},
      {[](auto& c) { c.device = "tpu"; },
       "device: tpu, wanted auto, cpu or cuda"},
      {[](auto& c) { c.eval_interval = -1; },
       "eval_interval: -1, wanted 0 or more"},
      {[](auto& c) { c.eval_iters = 0; }, "eval_iters: 0, wanted 1 or more"},
      {[](auto& c) { c.distributed_timeout_minutes = 0; },
       "distributed_timeout_minutes: 0, wanted more than 0"},
      {[](auto& c) { c.encoder_run_ahead = -1; },
       "encoder_run_ahead: -1, wanted 0 or more"},
      {[](auto& c) { c.check_replicas_interval = -1; },
       "check_replicas_interval: -1, wanted 0 or more"},
  });
}

TEST(CheckpointConfig, SaysWhatIsWrong) {
  ExpectMessages<CheckpointConfig>({
      {[](auto& c) { c.save = ""; },
       "save: an empty path, wanted one, or no such key"},
      {[](auto& c) { c.load = ""; },
       "load: an empty path, wanted one, or no such key"},
      {[](auto& c) { c.save_interval = -1; },
       "save_interval: -1, wanted 0 or more"},
      {[](auto& c) { c.keep = -1; }, "keep: -1, wanted 0 or more"},
  });
}

TEST(LoggingConfig, SaysWhatIsWrong) {
  ExpectMessages<LoggingConfig>({
      {[](auto& c) { c.log_interval = 0; },
       "log_interval: 0, wanted 1 or more"},
      {[](auto& c) { c.metrics = ""; },
       "metrics: an empty path, wanted one, or no such key"},
      {[](auto& c) { c.tensorboard_dir = ""; },
       "tensorboard_dir: an empty path, wanted one, or no such key"},
  });
}

}  // namespace
}  // namespace mimo
