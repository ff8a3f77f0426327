// A rank of a job on GPUs is killed: the others do not hang in what they had on
// the GPU with it.
#include <string>

#include "gtest/gtest.h"
#include "tests/ranks/gpus.h"
#include "tests/ranks/killed.h"

namespace mimo {
namespace {

TEST(RanksOnGpus, AKilledRankEndsTheJobAndTheRunGoesOn) {
  if (Gpus() < 2)
    GTEST_SKIP() << "found " << Gpus() << " GPUs, wanted 2 for two ranks";
  for (const std::string layout :
       {"{}",
        "{deployment_mode: colocated, modules: {images: {data_parallel_size: "
        "2}, language: {pipeline_model_parallel_size: 2, data_parallel_size: "
        "1}}}",
        "{deployment_mode: heterogeneous, modules: {images: "
        "{data_parallel_size: 1}, language: {data_parallel_size: 1, "
        "rank_offset: 1}}}"}) {
    SCOPED_TRACE(layout);
    Words words = kOnGpu;
    words.insert(words.end(),
                 {"model.language.num_layers=2", "train.train_iters=400",
                  "checkpoint.save_interval=100", "parallelism=" + layout});
    ExpectNamedAndGoesOn(2, 4, words);
  }
}

}  // namespace
}  // namespace mimo
