#include "kernels/loss/loss_mean.h"

#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

class LossMeanTest : public BackendTest {
 protected:
  Array Double(double value) const {
    return Array(backend(), DType::kFloat64, {value});
  }
};
MIMO_ON_BACKENDS(LossMeanTest);

double* Pointer(const Array& array) {
  return static_cast<double*>(array.data());
}

TEST_P(LossMeanTest, AScaleIsTheRoundedReciprocal) {
  for (double labelled : {1.0, 3.0, 49.0, 4194303.0}) {
    const Array count = Double(labelled);
    const Array scale = Array::Poisoned(backend(), DType::kFloat64, 1);
    LossScale({Pointer(count), Pointer(scale)}, StreamOf(backend()));
    EXPECT_EQ(scale.Values()[0], 1 / labelled);
  }
}

TEST_P(LossMeanTest, NothingLabelledScalesByNothing) {
  const Array count = Double(0);
  const Array scale = Array::Poisoned(backend(), DType::kFloat64, 1);
  LossScale({Pointer(count), Pointer(scale)}, StreamOf(backend()));
  EXPECT_EQ(scale.Values()[0], 0);
}

TEST_P(LossMeanTest, LossesAreAddedInOrder) {
  const Array sum = Double(0);
  double wanted = 0;
  for (double loss : {1e16, 1.0, 1.0, -1e16, 0.1}) {
    wanted += loss;
    const Array one = Double(loss);
    AddLoss({Pointer(one), Pointer(sum)}, StreamOf(backend()));
    EXPECT_EQ(sum.Values()[0], wanted);
  }
}

}  // namespace
}  // namespace mimo::kernels
