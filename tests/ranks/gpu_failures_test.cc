// Of a job on GPUs a rank fails: nobody hangs in what they have on the GPU
// together.
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ranks/failures.h"
#include "tests/ranks/gpus.h"

namespace mimo {
namespace {

constexpr char kReplicas[] = "{}";
constexpr char kColocated[] =
    "{deployment_mode: colocated, modules: {images: {data_parallel_size: 2}, "
    "language: {pipeline_model_parallel_size: 2, data_parallel_size: 1}}}";
constexpr char kTensorParallel[] =
    "{deployment_mode: colocated, modules: {images: {data_parallel_size: 2}, "
    "language: {tensor_model_parallel_size: 2, data_parallel_size: 1}}}";
constexpr char kApart[] =
    "{deployment_mode: heterogeneous, modules: {images: {data_parallel_size: "
    "1}, language: {data_parallel_size: 1, rank_offset: 1}}}";
constexpr char kFour[] =
    "{deployment_mode: heterogeneous, modules: {images: {data_parallel_size: "
    "2}, language: {pipeline_model_parallel_size: 2, data_parallel_size: 1, "
    "rank_offset: 2}}}";

Words On(const std::string& layout, const Words& more) {
  Words words = kOnGpu;
  words.insert(words.end(),
               {"model.language.num_layers=2", "parallelism=" + layout});
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST(RanksOnGpus, AKilledRankEndsTheJobAndTheRunGoesOn) {
  SKIP_BELOW_GPUS(2);
  for (const std::string layout : {kReplicas, kColocated, kApart}) {
    SCOPED_TRACE(layout);
    ExpectNamedAndGoesOn(
        2, 4,
        On(layout, {"train.train_iters=400", "checkpoint.save_interval=100"}),
        Gpus());
  }
  ExpectNamedAndGoesOn(
      4, 4, On(kFour, {"train.train_iters=60", "checkpoint.save_interval=15"}),
      Gpus());
}

TEST(RanksOnGpus, AMistakeInTheDataIsSaidOnce) {
  SKIP_BELOW_GPUS(2);
  for (const std::string layout :
       {kReplicas, kColocated, kTensorParallel, kApart}) {
    SCOPED_TRACE(layout);
    ExpectMistakeSaidOnce(2,
                          On(layout, {"train.distributed_timeout_minutes=2"}));
  }
}

}  // namespace
}  // namespace mimo
