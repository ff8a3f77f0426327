// Which topologies and outputs a model of ours runs with.
#include "models/mimo_model/model_links.h"

#include <map>
#include <string>

#include "gtest/gtest.h"

namespace mimo {
namespace {

MimoParallelismConfig TwoModules() {
  MimoParallelismConfig config = {
      .module_parallelisms = {{"images", {}}, {"language", {}}}};
  EXPECT_TRUE(config.Finalize(1).ok());
  return config;
}

std::string Refusal(const MimoParallelismConfig& config) {
  return std::string(CheckRuns(config).message());
}

TEST(ModelLinks, ModalitiesFeedTheLanguageModel) {
  MimoParallelismConfig config = TwoModules();
  EXPECT_TRUE(CheckRuns(config).ok());
  config.topology = {{"images", {}}, {"language", {"images"}}};
  EXPECT_EQ(Refusal(config),
            "topology: 'images' sends to [], wanted [language]: no module but "
            "the language model takes what another gives");
}

TEST(ModelLinks, ModalitiesGiveRows) {
  MimoParallelismConfig config = TwoModules();
  config.module_output_ndim = {{"images", 2}, {"language", 2}};
  EXPECT_TRUE(CheckRuns(config).ok());
  config.module_output_ndim = {{"images", 3}};
  EXPECT_TRUE(config.Finalize(1).ok());
  EXPECT_EQ(Refusal(config),
            "module_output_ndim.images: 3, wanted 2: modalities give rows "
            "[tokens, H]");
}

}  // namespace
}  // namespace mimo
