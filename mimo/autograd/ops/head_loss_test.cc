#include "mimo/autograd/ops/head_loss.h"

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/device.h"
#include "kernels/testing/backend.h"

namespace mimo {
namespace {

using Values = std::vector<double>;

class HeadLossTest : public BackendTest {
 protected:
  static constexpr int64_t kTokens = 37, kHidden = 24, kVocab = 56;

  void SetUp() override {
    BackendTest::SetUp();
    if (!IsSkipped()) allocator_.emplace(StreamOf(backend()));
  }
  Tensor Of(Shape shape, DType dtype, const Values& values) {
    Tensor tensor(*allocator_, std::move(shape), dtype);
    const Array source(backend(), dtype, values);
    CopyBytes(tensor.data(), source.data(), tensor.bytes(),
              StreamOf(backend()));
    Synchronize(StreamOf(backend()));
    return tensor;
  }
  Values Get(const Tensor& tensor) {
    const Array copy =
        Array::Poisoned(backend(), tensor.dtype(), tensor.numel());
    CopyBytes(copy.data(), tensor.data(), tensor.bytes(), StreamOf(backend()));
    return copy.Values();
  }

  struct Results {
    Values loss, dx, dweight;
  };
  // Two micro-batches of the same rows: dweight is added to.
  Results Run(bool gradient_is_known, bool frozen = false, bool want_dx = true,
              std::optional<DType> logit_dtype = {}) {
    Values labels(kTokens);
    for (int64_t t = 0; t < kTokens; ++t) labels[t] = t % 5 == 0 ? -100 : t;
    Parameter weight;
    weight.data = Of({kVocab, kHidden}, backend().dtype,
                     RandomValues(kVocab * kHidden, 1));
    weight.frozen = frozen;
    if (!frozen) {
      weight.main_grad = Of({kVocab, kHidden}, AccumulatorOf(backend().dtype),
                            Values(kVocab * kHidden, std::nan("")));
    }
    Results results;
    for (int64_t i = 0; i < 2; ++i) {
      Tape tape;
      const Context ctx = {.allocator = &*allocator_, .tape = &tape};
      const Tensor values = Of({kTokens, kHidden}, backend().dtype,
                               RandomValues(kTokens * kHidden, 2));
      const Var x = want_dx ? tape.Input(values) : Var{values};
      const Tensor dloss = Of({1}, DType::kFloat64, {0.25});
      const Var loss =
          HeadLoss(ctx, x, weight, Of({kTokens}, DType::kInt32, labels),
                   gradient_is_known ? dloss : Tensor(), {}, logit_dtype);
      tape.Backward(ctx, {{loss.slot, dloss}});
      results.loss = Get(loss.value);
      if (want_dx) results.dx = Get(tape.TakeGrad(x.slot));
    }
    if (!frozen) results.dweight = Get(weight.main_grad);
    return results;
  }

  std::optional<Allocator> allocator_;
};
MIMO_ON_BACKENDS(HeadLossTest);

// Forward and backward at once are the same arithmetic.
TEST_P(HeadLossTest, AKnownGradientChangesNothing) {
  const Results apart = Run(false), at_once = Run(true);
  EXPECT_EQ(at_once.loss, apart.loss);
  EXPECT_EQ(at_once.dx, apart.dx);
  EXPECT_EQ(at_once.dweight, apart.dweight);
}

TEST_P(HeadLossTest, EitherGradientAlone) {
  const Results both = Run(true);
  EXPECT_EQ(Run(true, /*frozen=*/true).dx, both.dx);
  EXPECT_EQ(Run(true, /*frozen=*/false, /*want_dx=*/false).dweight,
            both.dweight);
}

// How exact they are: kernels/loss/head_cross_entropy_test.
TEST_P(HeadLossTest, LogitsInFloat32) {
  const Results plain = Run(true);
  const Results apart = Run(false, false, true, DType::kFloat32);
  const Results at_once = Run(true, false, true, DType::kFloat32);
  EXPECT_EQ(at_once.loss, apart.loss);
  EXPECT_EQ(at_once.dx, apart.dx);
  EXPECT_EQ(at_once.dweight, apart.dweight);
  EXPECT_EQ(at_once.loss == plain.loss, backend().dtype == DType::kFloat32);
}

}  // namespace
}  // namespace mimo
