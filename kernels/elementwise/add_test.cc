#include "kernels/elementwise/add.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

class AddTest : public BackendTest {};
MIMO_ON_BACKENDS(AddTest);

// One rounding; in bfloat16 one to float32 before it.
TEST_P(AddTest, AddsAlsoInPlace) {
  const double roundoff = Roundoff(backend().dtype) * (1 + 0x1p-14);
  for (int64_t size : {0, 1, 7, 4096, 100003, 100008}) {
    const std::vector<double> a = RandomValues(size, 1);
    const std::vector<double> b = RandomValues(size, 2);
    const Array a_on(backend(), a), b_on(backend(), b);
    const Array out = Array::Poisoned(backend(), size);
    AddArgs args = {.a = a_on.data(),
                    .b = b_on.data(),
                    .out = out.data(),
                    .size = size,
                    .dtype = backend().dtype};
    Add(args, StreamOf(backend()));
    const std::vector<double> sums = out.Values();
    for (int64_t i = 0; i < size; ++i) {
      ASSERT_NEAR(sums[i], a[i] + b[i], roundoff * std::fabs(a[i] + b[i]))
          << i << " of " << size;
    }
    args.out = a_on.data();
    Add(args, StreamOf(backend()));
    EXPECT_EQ(a_on.Values(), sums);
  }
}

}  // namespace
}  // namespace mimo::kernels
