#include "mimo/nn/module.h"

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "mimo/nn/layers.h"

namespace mimo {
namespace {

class TwoLayers : public Module {
 public:
  TwoLayers(BuildContext build, bool swapped) : Module(std::move(build)) {
    AddParameter("scale", {3}, {.mean = 1});
    AddChild<LinearLayer>(swapped ? "b" : "a", 4, 100, true, 0.5);
    AddChild<LinearLayer>(swapped ? "a" : "b", 4, 100, false, 0.5);
  }
};

std::vector<float> Values(const Parameter& p) {
  return {p.data.span<float>().begin(), p.data.span<float>().end()};
}

Parameter* Find(const Module& module, const std::string& name) {
  for (Parameter* p : module.Parameters()) {
    if (p->name == name) return p;
  }
  return nullptr;
}

TEST(Module, NamesFollowThePath) {
  Allocator allocator;
  TwoLayers m({.allocator = &allocator, .seed = 1, .path = "m"}, false);
  std::vector<std::string> names;
  for (Parameter* p : m.Parameters()) names.push_back(p->name);
  EXPECT_EQ(names, (std::vector<std::string>{"m.scale", "m.a.weight",
                                             "m.a.bias", "m.b.weight"}));
}

TEST(Module, InitialValuesDependOnSeedAndNameAlone) {
  Allocator allocator;
  TwoLayers m({.allocator = &allocator, .seed = 1, .path = "m"}, false);
  TwoLayers swapped({.allocator = &allocator, .seed = 1, .path = "m"}, true);
  TwoLayers other({.allocator = &allocator, .seed = 2, .path = "m"}, false);
  EXPECT_EQ(Values(*Find(m, "m.a.weight")),
            Values(*Find(swapped, "m.a.weight")));
  EXPECT_NE(Values(*Find(m, "m.a.weight")), Values(*Find(m, "m.b.weight")));
  EXPECT_NE(Values(*Find(m, "m.a.weight")), Values(*Find(other, "m.a.weight")));
  EXPECT_EQ(Values(*Find(m, "m.scale")), (std::vector<float>{1, 1, 1}));
  double square = 0;
  for (float x : Values(*Find(m, "m.a.weight"))) square += x * x;
  EXPECT_NEAR(std::sqrt(square / 400), 0.5, 0.06);  // 3 sigma of 400 draws
}

TEST(Module, FreezeDropsGradients) {
  Allocator allocator;
  TwoLayers m({.allocator = &allocator, .seed = 1, .path = "m"}, false);
  EXPECT_TRUE(m.Trainable());
  m.Freeze();
  EXPECT_FALSE(m.Trainable());
  for (Parameter* p : m.Parameters()) {
    EXPECT_EQ(p->main_grad_or_null(), nullptr);
  }
}

TEST(Parameter, FirstWriteOfAStepOverwrites) {
  Allocator allocator;
  Parameter p{.name = "p",
              .data = Tensor::Zeros(allocator, {2}, DType::kFloat32),
              .main_grad = Tensor::From<float>(allocator, {2}, {NAN, NAN})};
  EXPECT_EQ(p.NextBeta(), 0);
  EXPECT_EQ(p.NextBeta(), 1);
  p.ForgetGrad();
  EXPECT_EQ(p.Grad().span<float>()[1], 0);  // nothing wrote: zero, not NaN
  EXPECT_EQ(p.NextBeta(), 1);
}

}  // namespace
}  // namespace mimo
