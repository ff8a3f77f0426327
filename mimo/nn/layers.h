// The layers that models are made of: parameters around the differentiable ops.
#ifndef MIMO_MIMO_NN_LAYERS_H_
#define MIMO_MIMO_NN_LAYERS_H_

#include <cstdint>
#include <vector>

#include "mimo/autograd/ops/linear.h"
#include "mimo/autograd/ops/norm.h"
#include "mimo/nn/module.h"

namespace mimo {

// y = act(x w^T + b).  `weight` [F, H], `bias` [F] when asked for; multiplied
// as the BuildContext's quantization says.
//
// Split over the tp ranks (LinearSplit; on one rank all kinds are one), a
// column layer has `shards` of its outputs, a row layer of its inputs; even
// parts if there are none given.
class LinearLayer : public Module {
 public:
  LinearLayer(BuildContext build, int64_t in, int64_t out, bool bias,
              double init_std, LinearSplit::Kind kind = LinearSplit::kWhole,
              std::vector<Shard> shards = {});

  Var Forward(const Context& ctx, const Var& x,
              Activation activation = Activation::kIdentity) const {
    return Linear(ctx, x, weight_, bias_, activation, split_);
  }
  // Forward's record alone: RecordLinear.
  Var Record(const Context& ctx, const Var& x) const {
    return RecordLinear(ctx, x, weight_, bias_, split_);
  }
  Parameter& weight() const { return weight_; }
  Parameter* bias() const { return bias_; }

 private:
  LinearSplit split_;
  Parameter& weight_;
  Parameter* bias_;
};

enum class NormKind { kRms, kLayer };

// `weight` [H], and `bias` [H] for layer norm. With sequence parallelism, of
// the rank's tokens.
class NormLayer : public Module {
 public:
  NormLayer(BuildContext build, NormKind kind, int64_t hidden, double eps)
      : Module(std::move(build)),
        eps_(eps),
        weight_(AddParameter("weight", {hidden}, {.mean = 1})),
        bias_(kind == NormKind::kLayer ? &AddParameter("bias", {hidden}, {})
                                       : nullptr) {
    weight_.reduce_grad_over_tp = this->build().parallel.sequence_parallel;
    if (bias_ != nullptr)
      bias_->reduce_grad_over_tp = weight_.reduce_grad_over_tp;
  }

  NormOutput Forward(const Context& ctx, const Var& x,
                     const Var& residual = Var()) const {
    return AddNorm(ctx, x, residual, weight_, bias_, eps_);
  }

 private:
  double eps_;
  Parameter& weight_;
  Parameter* bias_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_NN_LAYERS_H_
