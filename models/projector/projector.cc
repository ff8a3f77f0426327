#include "models/projector/projector.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"

namespace mimo {
namespace {

int64_t FirstWidth(const ProjectorConfig& config) {
  if (config.type == ProjectorType::kAffine || config.ffn_hidden_size == 0) {
    return config.output_size;
  }
  return config.ffn_hidden_size;
}

}  // namespace

absl::Status ProjectorConfig::Validate() const {
  for (const auto& [name, value] : {std::pair("input_size", input_size),
                                    {"ffn_hidden_size", ffn_hidden_size},
                                    {"output_size", output_size}}) {
    if (value < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": ", value, ", wanted at least 0"));
    }
  }
  return absl::OkStatus();
}

MultimodalProjector::MultimodalProjector(BuildContext build,
                                         const ProjectorConfig& config)
    : Projection(std::move(build)),
      config_(config),
      fc1_(AddChild<LinearLayer>("fc1", config.input_size, FirstWidth(config),
                                 config.bias, config.init_std)),
      fc2_(config.type == ProjectorType::kAffine
               ? nullptr
               : &AddChild<LinearLayer>("fc2", FirstWidth(config),
                                        config.output_size, config.bias,
                                        config.init_std)) {}

Var MultimodalProjector::Forward(const Context& ctx,
                                 const Var& features) const {
  if (fc2_ == nullptr) return fc1_.Forward(ctx, features);
  return fc2_->Forward(ctx, fc1_.Forward(ctx, features, config_.activation));
}

}  // namespace mimo
