#include "kernels/elementwise/add.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace mimo::kernels {
namespace {

TEST(Add, AddsAlsoInPlace) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  for (int64_t size : {0, 1, 7, 100003}) {
    std::vector<float> a(size), b(size), out(size, NAN);
    for (float& x : a) x = normal(rng);
    for (float& x : b) x = normal(rng);
    Add({.a = a.data(),
         .b = b.data(),
         .out = out.data(),
         .size = size,
         .dtype = DType::kFloat32},
        {});
    for (int64_t i = 0; i < size; ++i) ASSERT_EQ(out[i], a[i] + b[i]);
    Add({.a = a.data(),
         .b = b.data(),
         .out = a.data(),
         .size = size,
         .dtype = DType::kFloat32},
        {});
    EXPECT_EQ(a, out);
  }
}

}  // namespace
}  // namespace mimo::kernels
