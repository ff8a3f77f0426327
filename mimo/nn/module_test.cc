#include "mimo/nn/module.h"

#include <cmath>
#include <string>
#include <vector>

#include "comm/inproc/inproc.h"
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

// Elements [begin, begin + size) of dimension `dim` of a matrix, for each
// shard.
std::vector<float> Slice(const std::vector<float>& values, const Shape& shape,
                         const Sharding& sharding) {
  std::vector<float> slice;
  for (int64_t r = 0; r < shape[0]; ++r) {
    for (int64_t c = 0; c < shape[1]; ++c) {
      const int64_t at = sharding.dim == 0 ? r : c;
      for (const Shard& shard : sharding.shards)
        if (shard.begin <= at && at < shard.begin + shard.size)
          slice.push_back(values[r * shape[1] + c]);
    }
  }
  return slice;
}

class Matrix : public Module {
 public:
  Matrix(BuildContext build, Sharding sharding)
      : Module(std::move(build)),
        weight(
            AddParameter("weight", {11, 7}, {.std = 1}, std::move(sharding))) {}
  Parameter& weight;
};

TEST(Module, ARanksPartHasTheValuesOfTheWhole) {
  Allocator allocator;
  BuildContext build = {.allocator = &allocator, .seed = 3, .path = "m"};
  const std::vector<float> whole = Values(Matrix(build, {}).weight);
  for (int ranks : {2, 3, 4}) {
    for (auto& tp : InprocWorld(ranks)) {
      build.parallel.tp = tp.get();
      const Shard four = build.PartOf(4), seven = build.PartOf(7);
      for (const Sharding& sharding :
           {Sharding{0, {build.PartOf(11)}},
            Sharding{0, {four, {4 + seven.begin, seven.size}}},
            Sharding{1, {seven}}}) {
        const Matrix part(build, sharding);
        EXPECT_EQ(part.weight.whole, (Shape{11, 7}));
        EXPECT_EQ(part.weight.data.shape(), part.weight.main_grad.shape());
        EXPECT_EQ(Values(part.weight),
                  Slice(whole, part.weight.whole, sharding));
      }
      const Matrix all(build, {});
      EXPECT_EQ(Values(all.weight), whole);
      EXPECT_EQ(all.weight.sharding.shards[0].copies, ranks);
      EXPECT_EQ(all.weight.sharding.shards[0].copy, tp->rank());
    }
  }
}

TEST(Module, PartsMakeTheWhole) {
  for (int ranks : {1, 2, 3, 4}) {
    for (int64_t size : {1, 4, 5, 12}) {
      int64_t end = 0;
      for (auto& tp : InprocWorld(ranks)) {
        const BuildContext build = {.allocator = nullptr,
                                    .parallel = {.tp = tp.get()}};
        const Shard part = build.PartOf(size);
        EXPECT_EQ(part.begin, end);
        EXPECT_EQ(part.size, size / ranks + (part.size > size / ranks));
        end += part.size;
      }
      EXPECT_EQ(end, size);
    }
  }
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
