#include "models/parallelism/topology.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

TEST(Topology, AnyGraphWithoutCycles) {
  const std::vector<std::string> modules = {"a", "b", "language", "generator"};
  for (const Receivers& good : std::vector<Receivers>{
           // A diamond, a skip, and a module after the language model.
           {{"a", {"b", "language"}},
            {"b", {"language", "generator"}},
            {"language", {"generator"}},
            {"generator", {}}},
           {{"generator", {}}, {"language", {}}, {"b", {}}, {"a", {}}}}) {
    EXPECT_TRUE(CheckTopology(modules, good).ok());
  }
}

TEST(Topology, Refuses) {
  const std::vector<std::string> modules = {"a", "b", "language"};
  const std::pair<Receivers, const char*> cases[] = {
      {{{"a", {"a"}}, {"b", {}}, {"language", {}}}, "cycle a -> a"},
      {{{"a", {"b"}}, {"b", {"language"}}, {"language", {"a"}}},
       "cycle a -> b -> language -> a"},
      {{{"a", {"language"}}, {"b", {"language"}}, {"language", {"b"}}},
       "cycle language -> b -> language"},
      {{{"a", {}}, {"b", {}}}, "no module 'language'"},
      {{{"a", {"c"}}, {"b", {}}, {"language", {}}}, "'a' sends to 'c'"},
      {{{"a", {}}, {"b", {}}, {"language", {}}, {"c", {}}}, "'c', wanted one"},
      {{{"a", {"b", "b"}}, {"b", {}}, {"language", {}}}, "to 'b' twice"},
  };
  for (const auto& [topology, want] : cases) {
    EXPECT_THAT(CheckTopology(modules, topology).message(), HasSubstr(want));
  }
}

}  // namespace
}  // namespace mimo
