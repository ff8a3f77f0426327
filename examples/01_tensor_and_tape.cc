// Fits y = x w^T + b to random data with the tape and AdamW: tensors, a module,
// one forward and backward, one update.
//
//   bazel run //examples:01_tensor_and_tape
#include <cmath>
#include <cstdio>
#include <vector>

#include "kernels/random/philox.h"
#include "mimo/autograd/ops/norm.h"
#include "mimo/autograd/tape.h"
#include "mimo/nn/layers.h"
#include "mimo/optim/adamw.h"

using mimo::DType;

int main() {
  constexpr int64_t kRows = 64, kIn = 3, kOut = 2;
  mimo::Allocator allocator;
  mimo::LinearLayer layer({.allocator = &allocator, .seed = 1, .path = "layer"},
                          kIn, kOut, /*bias=*/true, /*init_std=*/0.1);
  mimo::OptimizerConfig config;
  config.weight_decay = 0;
  mimo::AdamW optimizer(config, layer.Parameters(), allocator);

  // Data of a known layer: y = 2 x0 - x1 + 3 and y = x2.
  mimo::PhiloxSequence random(7, 0);
  std::vector<float> x_values, minus_y;
  for (int64_t i = 0; i < kRows; ++i) {
    const float x[kIn] = {static_cast<float>(random.Normal()),
                          static_cast<float>(random.Normal()),
                          static_cast<float>(random.Normal())};
    x_values.insert(x_values.end(), x, x + kIn);
    minus_y.push_back(-(2 * x[0] - x[1] + 3));
    minus_y.push_back(-x[2]);
  }
  const mimo::Var x{
      mimo::Tensor::From<float>(allocator, {kRows, kIn}, x_values)};
  const mimo::Var target{
      mimo::Tensor::From<float>(allocator, {kRows, kOut}, minus_y)};

  double loss = 0;
  for (int step = 0; step < 300; ++step) {
    mimo::Tape tape;
    const mimo::Context ctx{.allocator = &allocator, .tape = &tape};
    const mimo::Var error = Add(ctx, layer.Forward(ctx, x), target);
    // loss = mean error^2, so its gradient is 2 error / n.
    mimo::Tensor seed = error.value.Clone(allocator);
    loss = 0;
    for (float& e : seed.span<float>()) {
      loss += e * e / (kRows * kOut);
      e *= 2.0f / (kRows * kOut);
    }
    tape.Backward(ctx, {{error.slot, std::move(seed)}});
    optimizer.Step(/*lr=*/0.05);
    for (mimo::Parameter* p : layer.Parameters()) p->ForgetGrad();
    if (step % 100 == 0) std::printf("step %3d loss %.6f\n", step, loss);
  }
  const auto w = layer.weight().data.span<float>();
  std::printf("loss %.6f, y0 = %.3f x0 %+.3f x1 %+.3f x2\n", loss, w[0], w[1],
              w[2]);
  return std::abs(w[0] - 2) < 0.02 && std::abs(w[1] + 1) < 0.02 ? 0 : 1;
}
