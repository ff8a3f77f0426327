// What the mathematics of a LLaVA training step needs, docs/metrics.md's rule:
// 2 FLOP a weight and row of each product that the chain rule needs (forward;
// the input's gradient where something before it learns; the weight's gradient
// where it learns), attention's two products, twice backward, half of them
// where causal; the head on labelled rows alone. Norms, activations, the
// optimizer and anything computed again do not count.
#ifndef MIMO_BENCH_STEP_FLOPS_H_
#define MIMO_BENCH_STEP_FLOPS_H_

#include <cstdint>

#include "models/llava/config.h"

namespace mimo {

struct StepSize {
  int64_t batch;     // B samples of one image each
  int64_t seq;       // S tokens of a sample, the image's included
  int64_t labelled;  // labels of a sample
};

// FLOP of one step.
double StepFlops(const LlavaConfig& config, const StepSize& size);

}  // namespace mimo

#endif  // MIMO_BENCH_STEP_FLOPS_H_
