#include "models/projector/projector.h"

#include <cstdint>
#include <utility>

#include "kernels/base/status_macros.h"
#include "mimo/autograd/module_scope.h"
#include "mimo/config/check.h"

namespace mimo {
namespace {

int64_t FirstWidth(const ProjectorConfig& config) {
  if (config.type == ProjectorType::kAffine || config.ffn_hidden_size == 0) {
    return config.output_size;
  }
  return config.ffn_hidden_size;
}

BuildContext WithWholeTokens(BuildContext build) {
  build.parallel.sequence_parallel = false;
  return build;
}

}  // namespace

absl::Status ProjectorConfig::CheckTensorParallel(int tp) const {
  return CheckParts(tp, {{"ffn_hidden_size", FirstWidth(*this)}});
}

absl::Status ProjectorConfig::Validate() const {
  MIMO_RETURN_IF_ERROR(CheckSizes(0, {{"input_size", input_size},
                                      {"ffn_hidden_size", ffn_hidden_size},
                                      {"output_size", output_size}}));
  return CheckValue(init_std >= 0, "init_std", init_std, ">= 0");
}

MultimodalProjector::MultimodalProjector(BuildContext build,
                                         const ProjectorConfig& config)
    : Projection(WithWholeTokens(std::move(build))),
      config_(config),
      fc1_(AddChild<LinearLayer>("fc1", config.input_size, FirstWidth(config),
                                 config.bias, config.init_std,
                                 config.type == ProjectorType::kAffine
                                     ? LinearSplit::kWhole
                                     : LinearSplit::kColumn)),
      fc2_(config.type == ProjectorType::kAffine
               ? nullptr
               : &AddChild<LinearLayer>("fc2", FirstWidth(config),
                                        config.output_size, config.bias,
                                        config.init_std, LinearSplit::kRow)) {}

Var MultimodalProjector::Forward(const Context& ctx,
                                 const Var& features) const {
  const ModuleScope scope(ctx, path());
  if (fc2_ == nullptr) return fc1_.Forward(ctx, features);
  return fc2_->Forward(ctx, fc1_.Forward(ctx, features, config_.activation));
}

}  // namespace mimo
