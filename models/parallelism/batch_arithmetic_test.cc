// Samples of a module's replica in a micro-batch, micro-batches of an
// iteration.
#include <cstdint>
#include <limits>

#include "absl/log/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/parallelism/mimo_parallelism.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

MimoParallelismConfig Replicas(int language, int images) {
  MimoParallelismConfig config = {
      .deployment_mode = DeploymentMode::kHeterogeneous,
      .module_parallelisms = {
          {"language", {.data_parallel_size = language}},
          {"images", {.data_parallel_size = images, .rank_offset = language}}}};
  CHECK_OK(config.Finalize(language + images));
  return config;
}

TEST(MimoParallelism, BatchArithmetic) {
  const MimoParallelismConfig config = Replicas(2, 8);
  EXPECT_EQ(*config.MicroBatchSize("language", 4), 4);
  EXPECT_EQ(*config.MicroBatchSize("images", 4), 1);
  EXPECT_EQ(*config.MicroBatches(32, 4), 4);
  EXPECT_THAT(config.MicroBatchSize("images", 3).status().message(),
              HasSubstr("modules.images.data_parallel_size: 8, must divide "
                        "micro_batch_size 3 * DP 2 of module 'language'"));
  EXPECT_FALSE(config.MicroBatches(32, 3).ok());
  EXPECT_THAT(config.MicroBatches(36, 4).status().message(),
              HasSubstr("must divide global_batch_size 36"));
  EXPECT_FALSE(config.MicroBatches(0, 4).ok());
  for (int64_t bad :
       {int64_t{0}, int64_t{-8}, std::numeric_limits<int64_t>::max()}) {
    EXPECT_FALSE(config.MicroBatchSize("images", bad).ok());
  }
  EXPECT_EQ(config.MicroBatchSize("audios", 4).status().code(),
            absl::StatusCode::kNotFound);
  // Fan-out, and DP sizes of which neither divides the other.
  MimoParallelismConfig odd = Replicas(3, 2);
  EXPECT_EQ(*odd.MicroBatchSize("images", 4), 6);
  EXPECT_FALSE(odd.MicroBatchSize("images", 3).ok());
  // CP ranks of an encoder have whole samples.
  for (auto& [name, module] : odd.module_parallelisms)
    module.context_parallel_size = name == "images" ? 4 : 1;
  EXPECT_EQ(*odd.MicroBatches(24, 8), 1);
  EXPECT_EQ(odd.MicroBatches(12, 4).status().message(),
            "modules.images.context_parallel_size: 4, must divide 6, a "
            "replica's samples");
}

}  // namespace
}  // namespace mimo
