// The `parallelism:` section in YAML.
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/parallelism/mimo_parallelism.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(ParallelismYaml, ReadsAndWritesInOrder) {
  const auto root = ParseYaml(R"(
parallelism:
  deployment_mode: heterogeneous
  modules:
    language: {tensor_model_parallel_size: 2, data_parallel_size: 2}
    images: {data_parallel_size: 4, rank_offset: 4}
  special_token_ids: {images: 32000}
  topology: {language: [], images: [language]}
  module_output_ndim: {images: 3}
)",
                              "f.yaml");
  ASSERT_TRUE(root.ok());
  const auto config = ReadParallelism((*root)["parallelism"], 8);
  ASSERT_TRUE(config.ok()) << config.status();
  MimoParallelismConfig want;
  want.deployment_mode = DeploymentMode::kHeterogeneous;
  want.module_parallelisms = {
      {"language", {.tensor_model_parallel_size = 2, .data_parallel_size = 2}},
      {"images", {.data_parallel_size = 4, .rank_offset = 4}}};
  want.special_token_ids = {{"images", 32000}};
  want.topology = {{"images", {"language"}}, {"language", {}}};
  want.module_output_ndim = {{"images", 3}};
  EXPECT_EQ(*config, want);  // in the file's order, not the alphabet's
  const auto again = ParseYaml(absl::StrCat(*config), "again");
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*ReadParallelism(*again, std::nullopt), want);
  EXPECT_THAT(
      ReadParallelism((*root)["parallelism"], 9).status().message(),
      StartsWith("f.yaml: parallelism.modules.images.rank_offset: MIMO world"));
}

TEST(ParallelismYaml, FaultsNameFileAndKey) {
  const std::pair<const char*, const char*> cases[] = {
      {"{deployment_mode: mixed}",
       "f.yaml: parallelism.deployment_mode: \"mixed\", wanted homogeneous"},
      {"{modles: {}}", "did you mean parallelism.modules?"},
      {"{modules: 3}", "f.yaml: parallelism.modules: 3, wanted"},
      {"{modules: {language: {tensor_parallel_size: 2}}}",
       "did you mean parallelism.modules.language."},
      {"{modules: {language: {rank_offset: 3000000000}}}",
       "f.yaml: parallelism.modules.language.rank_offset: 3000000000, wanted"},
      {"{modules: {language: {context_parallel_size: 0}}}",
       "f.yaml: parallelism.modules.language.context_parallel_size: 0, "},
      {"{topology: [images]}",
       "f.yaml: parallelism.topology: a list, wanted a section"},
      {"{modules: {language: {}}, topology: {language: [language]}}",
       "f.yaml: parallelism.topology: cycle language -> language"},
      {"{modules: {language: {}}, module_output_ndim: {language: 4}}",
       "f.yaml: parallelism.module_output_ndim.language: 4, wanted 2 or 3"},
      // Megatron's has the field, and nothing that reads it.
      {"{modules: {language: {virtual_pipeline_model_parallel_size: 2}}}",
       "f.yaml: parallelism.modules.language."
       "virtual_pipeline_model_parallel_size: unknown key"},
      {"{modules: {}}", "f.yaml: parallelism.modules: Language module"},
  };
  for (const auto& [text, want] : cases) {
    const auto root =
        ParseYaml(absl::StrCat("parallelism: ", text, "\n"), "f.yaml");
    ASSERT_TRUE(root.ok());
    EXPECT_THAT(ReadParallelism((*root)["parallelism"], 1).status().message(),
                HasSubstr(want));
  }
}

}  // namespace
}  // namespace mimo
