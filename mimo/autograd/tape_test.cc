#include "mimo/autograd/tape.h"

#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "mimo/autograd/checkpoint.h"
#include "mimo/autograd/ops/linear.h"
#include "mimo/autograd/ops/norm.h"
#include "mimo/nn/layers.h"

namespace mimo {
namespace {

class TapeTest : public ::testing::Test {
 protected:
  Context Taped(Tape& tape) {
    return {.allocator = &allocator_, .tape = &tape};
  }
  Tensor Values(std::vector<double> values) {
    const int64_t n = values.size();
    return Tensor::From<double>(allocator_, {1, n}, values);
  }
  static std::vector<double> Read(const Tensor& t) {
    return {t.span<double>().begin(), t.span<double>().end()};
  }
  Allocator allocator_;
};

TEST_F(TapeTest, FanInAddsAndSharedBuffersAreCopied) {
  // d(x + x + y): x's gradient is twice the seed, y's once, and the seed that
  // the caller still holds does not change.
  Tape tape;
  const Context ctx = Taped(tape);
  const Var x = tape.Input(Values({1, 2}));
  const Var y = tape.Input(Values({3, 4}));
  const Var z = Add(ctx, Add(ctx, x, x), y);
  EXPECT_EQ(Read(z.value), (std::vector<double>{5, 8}));
  const Tensor seed = Values({10, 100});
  tape.Backward(ctx, {{z.slot, seed}});
  EXPECT_EQ(Read(tape.TakeGrad(x.slot)), (std::vector<double>{20, 200}));
  EXPECT_EQ(Read(tape.TakeGrad(y.slot)), (std::vector<double>{10, 100}));
  EXPECT_EQ(Read(seed), (std::vector<double>{10, 100}));
}

TEST_F(TapeTest, ConstantsRecordNothing) {
  Tape tape;
  const Context ctx = Taped(tape);
  const Var x{Values({1, 2})};
  EXPECT_FALSE(Add(ctx, x, x).needs_grad());
  NormLayer norm({.allocator = &allocator_, .dtype = DType::kFloat64},
                 NormKind::kRms, 2, 1e-5);
  norm.Freeze();
  LinearLayer linear({.allocator = &allocator_, .dtype = DType::kFloat64}, 2, 3,
                     true, 1);
  linear.Freeze();
  EXPECT_FALSE(
      linear.Forward(ctx, norm.Forward(ctx, x).normalized).needs_grad());
  EXPECT_EQ(tape.nodes(), 0);
}

TEST_F(TapeTest, FrozenWeightsPassGradients) {
  Tape tape;
  const Context ctx = Taped(tape);
  LinearLayer linear(
      {.allocator = &allocator_, .dtype = DType::kFloat64, .seed = 3}, 2, 1,
      false, 1);
  linear.Freeze();
  const Var x = tape.Input(Values({1, 2}));
  const Var y = linear.Forward(ctx, x);
  tape.Backward(ctx, {{y.slot, Values({2})}});
  const auto w = linear.weight().data.span<double>();
  EXPECT_EQ(Read(tape.TakeGrad(x.slot)),
            (std::vector<double>{2 * w[0], 2 * w[1]}));
}

TEST_F(TapeTest, UnreachedInputsHaveNoGradient) {
  Tape tape;
  const Context ctx = Taped(tape);
  const Var x = tape.Input(Values({1}));
  const Var unused = tape.Input(Values({1}));
  const Var y = Add(ctx, x, x);
  tape.Backward(ctx, {{y.slot, Values({1})}});
  EXPECT_FALSE(tape.TakeGrad(unused.slot).defined());
}

// A residual block in which the checkpointed and the plain run must agree bit
// for bit, and the body must run once more, not twice.
TEST_F(TapeTest, CheckpointIsBitwiseThePlainRun) {
  const BuildContext build = {
      .allocator = &allocator_, .dtype = DType::kFloat64, .seed = 5};
  NormLayer norm(build.Child("n"), NormKind::kLayer, 4, 1e-5);
  LinearLayer linear(build.Child("l"), 4, 4, true, 0.5);
  int runs = 0;
  const CheckpointBody body = [&](const Context& ctx,
                                  const std::vector<Var>& in) {
    ++runs;
    const NormOutput n = norm.Forward(ctx, in[0], in[1]);
    return std::vector<Var>{
        n.sum, linear.Forward(ctx, n.normalized, Activation::kGelu)};
  };
  std::vector<Parameter*> parameters = norm.Parameters();
  for (Parameter* p : linear.Parameters()) parameters.push_back(p);
  std::vector<std::vector<double>> grads[2];
  int64_t nodes[2];
  for (bool checkpoint : {false, true}) {
    Tape tape;
    const Context ctx = Taped(tape);
    const Var x = tape.Input(Values({1, -2, 3, 0.5}));
    std::vector<Var> out = {x, Var()};
    for (int layer = 0; layer < 2; ++layer) {
      out =
          checkpoint ? Checkpoint(ctx, out, parameters, body) : body(ctx, out);
    }
    for (const Parameter* p : parameters) EXPECT_EQ(p->uses, 2) << p->name;
    const Var y = Add(ctx, out[0], out[1]);
    nodes[checkpoint] = tape.nodes();
    tape.Backward(ctx, {{y.slot, Values({1, 2, 3, 4})}});
    grads[checkpoint].push_back(Read(tape.TakeGrad(x.slot)));
    for (Parameter* p : parameters) {
      EXPECT_EQ(p->uses, 0) << p->name;
      grads[checkpoint].push_back(Read(p->Grad()));
      p->ForgetGrad();
    }
  }
  EXPECT_EQ(grads[0], grads[1]);
  EXPECT_EQ(runs, 2 + 2 * 2);
  EXPECT_EQ(nodes[0], 5);  // 2 norms, 2 linear layers, the last addition
  EXPECT_EQ(nodes[1], 3);
}

TEST_F(TapeTest, CheckpointOfConstantsRecordsNothing) {
  Tape tape;
  const Context ctx = Taped(tape);
  Checkpoint(ctx, {Var{Values({1})}}, {},
             [](const Context& inner, const std::vector<Var>& in) {
               return std::vector<Var>{Add(inner, in[0], in[0])};
             });
  EXPECT_EQ(tape.nodes(), 0);
}

// Two stages on two tapes, the second seeded from the first, are one tape.
TEST_F(TapeTest, StagesPassGradientsThroughSeeds) {
  const BuildContext build = {
      .allocator = &allocator_, .dtype = DType::kFloat64, .seed = 7};
  LinearLayer a(build.Child("a"), 3, 3, true, 1);
  LinearLayer b(build.Child("b"), 3, 2, true, 1);
  std::vector<double> weight_grad[2];
  for (bool split : {false, true}) {
    Tape first, second;
    const Context one = Taped(first), two = Taped(second);
    const Var hidden =
        a.Forward(one, Var{Values({1, 2, 3})}, Activation::kSilu);
    if (split) {
      const Var received = second.Input(hidden.value);
      const Var y = b.Forward(two, received);
      second.Backward(two, {{y.slot, Values({1, -1})}});
      first.Backward(one, {{hidden.slot, second.TakeGrad(received.slot)}});
    } else {
      const Var y = b.Forward(one, hidden);
      first.Backward(one, {{y.slot, Values({1, -1})}});
    }
    weight_grad[split] = Read(a.weight().Grad());
    for (Parameter* p : a.Parameters()) p->ForgetGrad();
    for (Parameter* p : b.Parameters()) p->ForgetGrad();
  }
  EXPECT_EQ(weight_grad[0], weight_grad[1]);
}

TEST_F(TapeTest, MicroBatchesAccumulate) {
  LinearLayer linear(
      {.allocator = &allocator_, .dtype = DType::kFloat64, .seed = 9}, 2, 2,
      true, 1);
  std::vector<double> once;
  for (int repeat = 1; repeat <= 2; ++repeat) {
    for (Parameter* p : linear.Parameters()) p->ForgetGrad();
    for (int i = 0; i < repeat; ++i) {
      Tape tape;
      const Context ctx = Taped(tape);
      const Var y = linear.Forward(ctx, Var{Values({1, 2})});
      tape.Backward(ctx, {{y.slot, Values({3, 4})}});
    }
    std::vector<double> grad = Read(linear.weight().Grad());
    if (repeat == 1) once = grad;
    for (size_t i = 0; i < grad.size(); ++i) {
      EXPECT_EQ(grad[i], repeat * once[i]);
    }
  }
}

#ifndef NDEBUG
TEST_F(TapeTest, DebugBuildsCatchOverwrittenSaves) {
  Tensor t = Values({1, 2});
  Saved saved(t);
  t.span<double>()[0] = 5;
  EXPECT_DEATH(saved.get(), "overwritten");
}
#endif

}  // namespace
}  // namespace mimo
