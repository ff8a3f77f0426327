#include "mimo/nn/layers.h"

#include <algorithm>
#include <utility>

namespace mimo {
namespace {

LinearSplit SplitOf(const ParallelGroups& groups, LinearSplit::Kind kind) {
  if (groups.tp == nullptr || kind == LinearSplit::kWhole) return {};
  return {kind, groups.tp, groups.sequence_parallel};
}

}  // namespace

LinearLayer::LinearLayer(BuildContext build, int64_t in, int64_t out, bool bias,
                         double init_std, LinearSplit::Kind kind,
                         std::vector<Shard> shards)
    : Module(std::move(build)),
      split_(SplitOf(this->build().parallel, kind)),
      weight_([&]() -> Parameter& {
        const int dim = kind == LinearSplit::kRow ? 1 : 0;
        if (kind != LinearSplit::kWhole && shards.empty())
          shards = {this->build().PartOf(dim == 0 ? out : in)};
        return AddParameter("weight", {out, in}, {.std = init_std},
                            {dim, shards});
      }()),
      bias_(bias ? &AddParameter(
                       "bias", {out}, {},
                       {0, kind == LinearSplit::kColumn ? shards
                                                        : std::vector<Shard>()})
                 : nullptr) {
  weight_.quantization = this->build().quantization;
  if (kind != LinearSplit::kColumn) return;
  weight_.reduce_grad_over_tp =
      std::any_of(shards.begin(), shards.end(),
                  [](const Shard& shard) { return shard.copies > 1; });
  if (bias_ != nullptr)
    bias_->reduce_grad_over_tp = weight_.reduce_grad_over_tp;
}

}  // namespace mimo
