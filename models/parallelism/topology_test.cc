#include "models/parallelism/topology.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

MimoParallelismConfig Modules(std::vector<std::string> names) {
  MimoParallelismConfig config;
  for (const std::string& name : names) {
    config.module_parallelisms.emplace_back(name, ModuleParallelismConfig());
  }
  return config;
}

TEST(Topology, DefaultSendsToTheLanguageModule) {
  const auto config = Modules({"images", "language", "audios"});
  const ModuleTopology topology = DefaultTopology(config);
  EXPECT_EQ(topology, (ModuleTopology{{"images", {"language"}},
                                      {"language", {}},
                                      {"audios", {"language"}}}));
  EXPECT_TRUE(CheckTopology(config, topology).ok());
  auto renamed = Modules({"images", "llm"});
  renamed.llm_module_name = "llm";
  EXPECT_EQ(DefaultTopology(renamed),
            (ModuleTopology{{"images", {"llm"}}, {"llm", {}}}));
}

TEST(Topology, AnyGraphWithoutCycles) {
  const auto config = Modules({"a", "b", "language", "generator"});
  for (const ModuleTopology& good : std::vector<ModuleTopology>{
           // A diamond, a skip, and a module after the language model.
           {{"a", {"b", "language"}},
            {"b", {"language", "generator"}},
            {"language", {"generator"}},
            {"generator", {}}},
           {{"generator", {}}, {"language", {}}, {"b", {}}, {"a", {}}}}) {
    EXPECT_TRUE(CheckTopology(config, good).ok());
  }
}

TEST(Topology, Refuses) {
  const auto config = Modules({"a", "b", "language"});
  const std::pair<ModuleTopology, const char*> cases[] = {
      {{{"a", {"a"}}, {"b", {}}, {"language", {}}}, "cycle a -> a"},
      {{{"a", {"b"}}, {"b", {"language"}}, {"language", {"a"}}},
       "cycle a -> b -> language -> a"},
      {{{"a", {"language"}}, {"b", {"language"}}, {"language", {"b"}}},
       "cycle language -> b -> language"},
      {{{"a", {}}, {"b", {}}}, "no module 'language'"},
      {{{"a", {"c"}}, {"b", {}}, {"language", {}}}, "'a' sends to 'c'"},
      {{{"a", {}}, {"b", {}}, {"language", {}}, {"c", {}}}, "'c', wanted one"},
      {{{"a", {}}, {"a", {}}, {"b", {}}, {"language", {}}}, "given twice"},
      {{{"a", {"b", "b"}}, {"b", {}}, {"language", {}}}, "to 'b' twice"},
  };
  for (const auto& [topology, want] : cases) {
    EXPECT_THAT(CheckTopology(config, topology).message(), HasSubstr(want));
  }
}

}  // namespace
}  // namespace mimo
