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

// Calls expect(options) of each of `layouts` of two ranks.
template <typename F>
void OnEach(const Words& layouts, F&& expect) {
  if (Gpus() < 2)
    GTEST_SKIP() << "found " << Gpus() << " GPUs, wanted 2 for two ranks";
  for (const std::string& layout : layouts) {
    SCOPED_TRACE(layout);
    Words words = kOnGpu;
    words.insert(words.end(),
                 {"model.language.num_layers=2", "parallelism=" + layout});
    expect(words);
  }
}

TEST(RanksOnGpus, AKilledRankEndsTheJobAndTheRunGoesOn) {
  OnEach({kReplicas, kColocated, kApart}, [](Words words) {
    words.insert(words.end(),
                 {"train.train_iters=400", "checkpoint.save_interval=100"});
    ExpectNamedAndGoesOn(2, 4, words);
  });
}

TEST(RanksOnGpus, AMistakeInTheDataIsSaidOnce) {
  OnEach({kReplicas, kColocated, kTensorParallel, kApart}, [](Words words) {
    words.push_back("train.distributed_timeout_minutes=2");
    ExpectMistakeSaidOnce(2, words);
  });
}

}  // namespace
}  // namespace mimo
