// How far a backend may be from the numbers of float64.
#ifndef MIMO_TESTS_GOLDEN_TOLERANCE_H_
#define MIMO_TESTS_GOLDEN_TOLERANCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/testing/backend.h"
#include "models/llava/config.h"
#include "tests/testing/run_mimo.h"

namespace mimo {

// Relative errors; in the L2 norm, but of the loss.
struct Tolerance {
  double features, logits, grads;
  double loss;
  double zero;  // of a gradient that is none, beside a like one
};

// bfloat16: the roundings that a value meets on its way are counted. Each is at
// most u = 2^-8, 0.42 u in the root mean square, and they are independent: n of
// them add up to sqrt(n) 0.42 u. The tolerance is sqrt(n) u, which leaves a
// factor of 2.4 for what enlarges an error. A layer rounds its weights and
// biases, and stores norm, q, k, v, attention, projection, sum, norm, two or
// three activations of the MLP, and sum: about 24 in all. Embeddings,
// projector and head: about 10. A gradient meets all of the forward pass and
// twice as many of the backward, where each product has two.
inline double RoundingError(DType dtype, int64_t layers, int64_t passes) {
  return std::sqrt(passes * (24.0 * layers + 10)) * Roundoff(dtype);
}

// labels: < 0 where none.
inline Tolerance ToleranceOf(DType dtype, const LlavaConfig& config,
                             const std::vector<double>& logits,
                             const std::vector<double>& labels, double loss) {
  // Stored as float32, 6e-8; transformers takes softmax, RMS norm and rotary
  // angles in float32 even of a float64 model, which leaves a few times that.
  if (dtype == DType::kFloat64) return {1e-6, 1e-6, 1e-6, 1e-6, 1e-12};
  if (dtype == DType::kFloat32) return {2e-5, 2e-5, 2e-5, 1e-5, 1e-4};
  const int64_t vision = config.vision.num_layers;
  const int64_t all = vision + config.language.num_layers;
  Tolerance t;
  t.features = RoundingError(dtype, vision, 1);
  t.logits = RoundingError(dtype, all, 1);
  t.grads = RoundingError(dtype, all, 3);
  // A row of score gradients adds up to dO (O - rounded O), not to 0: what is
  // left is as large as the error of a gradient like it.
  t.zero = t.grads;
  // The gradient of a token's loss by its logits is at most sqrt(2) long, and
  // the loss is the mean of `count` of them.
  const int64_t count = std::count_if(labels.begin(), labels.end(),
                                      [](double label) { return label >= 0; });
  t.loss = std::sqrt(2.0 / count) * t.logits * Norm(logits) /
           std::sqrt(logits.size()) / loss;
  return t;
}

}  // namespace mimo

#endif  // MIMO_TESTS_GOLDEN_TOLERANCE_H_
