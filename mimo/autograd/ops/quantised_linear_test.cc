// Linear layers of weights with a quantization.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/device.h"
#include "kernels/base/float8.h"
#include "kernels/testing/backend.h"
#include "mimo/autograd/ops/collectives.h"
#include "mimo/autograd/ops/linear.h"
#include "mimo/nn/layers.h"
#include "mimo/nn/parallel_testing.h"

namespace mimo {
namespace {

constexpr int64_t kT = 37, kH = 48, kF = 32;

// What of `x` its 8-bit form holds, by the definition.
template <typename Code>
Values Held(const Values& x) {
  float amax = 0;
  for (double v : x) amax = std::max<float>(amax, std::fabs(v));
  const float s = Code::kLargest / amax, scale = 1 / s;
  Values held;
  for (double v : x) {
    const Code code(static_cast<float>(v) * s);
    held.push_back(double{scale} * static_cast<float>(code));
  }
  return held;
}

class QuantisedLinearTest : public BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    allocator_.emplace(StreamOf(backend()));
    for (double& v : dy_) v *= 0x1p-12;  // as small as gradients are
  }
  Tensor Of(Shape shape, DType dtype, const Values& values) {
    Tensor tensor(*allocator_, std::move(shape), dtype);
    const Array source(backend(), dtype, values);
    CopyBytes(tensor.data(), source.data(), tensor.bytes(),
              StreamOf(backend()));
    Synchronize(StreamOf(backend()));
    return tensor;
  }
  Tensor Of(Shape shape, const Values& values) {
    return Of(std::move(shape), backend().dtype, values);
  }
  Values Get(const Tensor& tensor) {
    const Array copy =
        Array::Poisoned(backend(), tensor.dtype(), tensor.numel());
    CopyBytes(copy.data(), tensor.data(), tensor.bytes(), StreamOf(backend()));
    return copy.Values();
  }
  Parameter Weight(bool frozen = false) {
    Parameter weight;
    weight.data = Of({kF, kH}, w_);
    weight.frozen = frozen;
    weight.quantization = Quantization::kFp8;
    if (!frozen) {
      weight.main_grad = Of({kF, kH}, AccumulatorOf(backend().dtype),
                            Values(kF * kH, std::nan("")));
    }
    return weight;
  }

  // y, and of the seed dy the gradients, of which dx is added up from two
  // layers that share their weight.
  struct Results {
    Values y, dx;
  };
  Results Run(Parameter& weight, const Values& x, const Values& dy,
              bool record_only = false) {
    Tape tape;
    const Context ctx = {.allocator = &*allocator_, .tape = &tape};
    const Var in = tape.Input(Of({kT, kH}, x));
    std::vector<Tape::Seed> seeds;
    Results results;
    for (int i = 0; i < 2; ++i) {
      const Var y = record_only ? RecordLinear(ctx, in, weight, nullptr)
                                : Linear(ctx, in, weight, nullptr);
      if (!record_only) results.y = Get(y.value);
      seeds.push_back({y.slot, Of({kT, kF}, dy)});
    }
    tape.Backward(ctx, std::move(seeds));
    results.dx = Get(tape.TakeGrad(in.slot));
    return results;
  }

  // Of sums of `terms` terms whose sizes add up to `size`, once rounded:
  // gemm_float8_test.cc has the reasons.
  double Error(int64_t terms, double size, double value) const {
    const double unit = backend().device == Device::kCuda
                            ? 0x1p-9
                            : (terms + 4) * Roundoff(DType::kFloat32);
    return unit * size + 2 * Roundoff(backend().dtype) * std::fabs(value);
  }

  const Values x_ = RandomValues(kT * kH, 1), w_ = RandomValues(kF * kH, 2);
  Values dy_ = RandomValues(kT * kF, 3);
  std::optional<Allocator> allocator_;
};
MIMO_ON_BACKENDS(QuantisedLinearTest);

TEST_P(QuantisedLinearTest, IsTheFormulaOfWhatEightBitsHold) {
  const Values x8 = Held<Float8E4M3>(x_), w8 = Held<Float8E4M3>(w_);
  const Values dy8 = Held<Float8E5M2>(dy_);
  Parameter weight = Weight();
  const Results got = Run(weight, x_, dy_);
  const Values dw = Get(weight.main_grad);
  for (int64_t t = 0; t < kT; ++t) {
    for (int64_t f = 0; f < kF; ++f) {
      double sum = 0, size = 0;
      for (int64_t h = 0; h < kH; ++h) {
        const double term = x8[t * kH + h] * w8[f * kH + h];
        sum += term;
        size += std::fabs(term);
      }
      ASSERT_NEAR(got.y[t * kF + f], sum, Error(kH, size, sum));
    }
    for (int64_t h = 0; h < kH; ++h) {
      double sum = 0, size = 0;
      for (int64_t f = 0; f < kF; ++f) {
        const double term = dy8[t * kF + f] * w8[f * kH + h];
        sum += 2 * term;
        size += 2 * std::fabs(term);
      }
      ASSERT_NEAR(got.dx[t * kH + h], sum, Error(kF, size, sum));
    }
  }
  // The weight's gradient is of what was not quantised.
  for (int64_t f = 0; f < kF; ++f) {
    for (int64_t h = 0; h < kH; ++h) {
      double sum = 0, size = 0;
      for (int64_t t = 0; t < kT; ++t) {
        const double term = dy_[t * kF + f] * x_[t * kH + h];
        sum += 2 * term;
        size += 2 * std::fabs(term);
      }
      ASSERT_NEAR(dw[f * kH + h], sum,
                  (kT + 2) * 4 * Roundoff(DType::kFloat32) * size);
    }
  }
}

TEST_P(QuantisedLinearTest, BiasAndActivationComeAfterTheProduct) {
  Parameter weight = Weight();
  Parameter bias;
  const Values b = RandomValues(kF, 4);
  bias.data = Of({kF}, b);
  const Context ctx = {.allocator = &*allocator_};
  const Tensor x = Of({kT, kH}, x_);
  const Values plain = Get(Linear(ctx, Var{x}, weight, nullptr).value);
  const Values y =
      Get(Linear(ctx, Var{x}, weight, &bias, Activation::kQuickGelu).value);
  for (size_t i = 0; i < y.size(); ++i) {
    const double z = plain[i] + b[i % kF];
    // `plain` and z are rounded, the slope is at most 1.13, the activation's
    // float32 form errs by 4e-6.
    ASSERT_NEAR(y[i], z / (1 + std::exp(-1.702 * z)),
                Roundoff(backend().dtype) *
                        (3 * std::fabs(plain[i]) + 3 * std::fabs(z)) +
                    4e-6);
  }
}

TEST_P(QuantisedLinearTest, AFrozenWeightIsQuantisedOnceWithTheSameResult) {
  Parameter trained = Weight(), frozen = Weight(/*frozen=*/true);
  const Results wanted = Run(trained, x_, dy_);
  EXPECT_FALSE(trained.quantised.codes.defined());
  EXPECT_FALSE(trained.transposed.codes.defined());
  const Results first = Run(frozen, x_, dy_);
  EXPECT_EQ(first.y, wanted.y);
  EXPECT_EQ(first.dx, wanted.dx);
  EXPECT_EQ(frozen.quantised.codes.shape(), (Shape{kF, kH}));
  EXPECT_EQ(frozen.transposed.codes.shape(), (Shape{kH, kF}));
  EXPECT_EQ(frozen.data.device(), Device::kCpu);
  EXPECT_EQ(Get(frozen.data), w_);
  // From here on nothing reads the weight itself.
  trained.data.Zero();
  frozen.data.Zero();
  EXPECT_EQ(Run(trained, x_, dy_).y, Values(kT * kF, 0));
  const Results again = Run(frozen, x_, dy_);
  EXPECT_EQ(again.y, wanted.y);
  EXPECT_EQ(again.dx, wanted.dx);
}

TEST_P(QuantisedLinearTest, GradientsThroughAWeightThatHadNone) {
  Parameter at_once = Weight(/*frozen=*/true), later = Weight(/*frozen=*/true);
  const Context ctx = {.allocator = &*allocator_};
  const Tensor y = Linear(ctx, Var{Of({kT, kH}, x_)}, later, nullptr).value;
  const void* codes = later.quantised.codes.data();
  EXPECT_FALSE(later.transposed.codes.defined());
  const Results wanted = Run(at_once, x_, dy_), got = Run(later, x_, dy_);
  EXPECT_EQ(Get(y), wanted.y);
  EXPECT_EQ(got.y, wanted.y);
  EXPECT_EQ(got.dx, wanted.dx);
  EXPECT_EQ(later.quantised.codes.data(), codes) << "a captured pass reads it";
}

TEST_P(QuantisedLinearTest, TheRecordAloneHasTheSameGradients) {
  Parameter whole = Weight(), recorded = Weight();
  EXPECT_EQ(Run(whole, x_, dy_).dx,
            Run(recorded, x_, dy_, /*record_only=*/true).dx);
  EXPECT_EQ(Get(whole.main_grad), Get(recorded.main_grad));
}

TEST_P(QuantisedLinearTest, WhatIsNotFiniteShows) {
  Parameter weight = Weight();
  Values x = x_, dy = dy_;
  x[5 * kH + 7] = std::numeric_limits<double>::quiet_NaN();
  dy.back() = std::numeric_limits<double>::infinity();
  const Results got = Run(weight, x, dy);
  for (double v : got.y) EXPECT_TRUE(std::isnan(v));
  for (double v : got.dx) EXPECT_TRUE(std::isnan(v));
}

// Each of two tp ranks is a layer of its own part, scaled by that part; of the
// sums only the order of two summands is open.
TEST(QuantisedLinearOverRanks, EachQuantisesItsPart) {
  constexpr int64_t kTokens = 38;
  const auto columns = [](const Values& of, int64_t width, int64_t begin,
                          int64_t size) {
    Values part;
    for (size_t row = 0; row < of.size(); row += width) {
      part.insert(part.end(), of.begin() + row + begin,
                  of.begin() + row + begin + size);
    }
    return part;
  };
  const auto floats = [](Allocator& allocator, Shape shape, const Values& of) {
    return Tensor::From<float>(allocator, std::move(shape),
                               std::vector<float>(of.begin(), of.end()));
  };
  for (auto kind : {LinearSplit::kColumn, LinearSplit::kRow}) {
    const bool column = kind == LinearSplit::kColumn;
    OnRanks(2, [&](Communicator& tp) {
      for (bool sequence_parallel : {false, true}) {
        Allocator memory;
        const ParallelGroups groups = {.tp = &tp,
                                       .sequence_parallel = sequence_parallel};
        LinearLayer layer({.allocator = &memory,
                           .seed = 5,
                           .quantization = Quantization::kFp8,
                           .parallel = groups},
                          2 * kH, 2 * kF, /*bias=*/false, 0.5, kind);
        // The part alone, on one rank.
        Parameter part;
        part.data = layer.weight().data;
        part.frozen = true;
        part.quantization = Quantization::kFp8;
        const int64_t in = part.data.dim(1), out = part.data.dim(0);
        const Values own_x = columns(RandomValues(kTokens * 2 * kH, 1), 2 * kH,
                                     column ? 0 : tp.rank() * in, in);
        const Values own_dy = columns(RandomValues(kTokens * 2 * kF, 3), 2 * kF,
                                      column ? tp.rank() * out : 0, out);
        const auto pass = [&](auto&& linear) {
          Tape tape;
          const Context ctx{.allocator = &memory, .tape = &tape};
          const Var whole = tape.Input(floats(memory, {kTokens, in}, own_x));
          const Var y = linear(ctx, whole);
          Tensor seed = floats(memory, {kTokens, out}, own_dy);
          tape.Backward(ctx, {{y.slot, std::move(seed)}});
          return std::pair(ValuesOf(y.value),
                           ValuesOf(tape.TakeGrad(whole.slot)));
        };
        const auto alone = pass([&](const Context& ctx, const Var& x) {
          return Linear(ctx, x, part, nullptr);
        });
        const auto together = pass([&](const Context& ctx, const Var& x) {
          Communicator* by = groups.tokens();
          if (column) {
            return layer.Forward(ctx, SliceTokensGatherGrad(ctx, x, by));
          }
          return GatherTokensSliceGrad(ctx, layer.Forward(ctx, x), kTokens, by);
        });
        const auto sum = [&](const Values& of) {
          Values all(of.size());
          tp.AllReduce(of.data(), all.data(), of.size(), DType::kFloat64,
                       ReduceOp::kSum, Stream());
          for (double& v : all) v = static_cast<float>(v);
          return all;
        };
        EXPECT_EQ(together.first, column ? alone.first : sum(alone.first));
        EXPECT_EQ(together.second, column ? sum(alone.second) : alone.second);
      }
    });
  }
}

}  // namespace
}  // namespace mimo
