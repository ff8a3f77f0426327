#include "models/clip/clip_vit.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/patch/patches.h"
#include "mimo/autograd/module_scope.h"
#include "mimo/autograd/ops/collectives.h"
#include "mimo/autograd/ops/embedding.h"
#include "mimo/config/check.h"

namespace mimo {

absl::Status ClipVitConfig::CheckTensorParallel(int tp) const {
  MIMO_RETURN_IF_ERROR(
      CheckHeads(num_attention_heads, num_attention_heads, tp));
  return CheckParts(tp, {{"ffn_hidden_size", ffn_hidden_size}});
}

absl::Status ClipVitConfig::CheckPipeline(int pp) const {
  return CheckLayers(num_layers, pp);
}

absl::Status ClipVitConfig::Validate() const {
  MIMO_RETURN_IF_ERROR(
      CheckSizes(1, {{"num_layers", num_layers},
                     {"hidden_size", hidden_size},
                     {"ffn_hidden_size", ffn_hidden_size},
                     {"num_attention_heads", num_attention_heads},
                     {"num_channels", num_channels},
                     {"image_size", image_size},
                     {"patch_size", patch_size}}));
  MIMO_RETURN_IF_ERROR(CheckValue(num_layers <= 10000, "num_layers", num_layers,
                                  "at most 10000"));
  MIMO_RETURN_IF_ERROR(
      CheckValue(norm_epsilon > 0, "norm_epsilon", norm_epsilon, "> 0"));
  MIMO_RETURN_IF_ERROR(CheckValue(init_std >= 0, "init_std", init_std, ">= 0"));
  MIMO_RETURN_IF_ERROR(CheckValue(position_embedding_std >= 0,
                                  "position_embedding_std",
                                  position_embedding_std, ">= 0"));
  const int64_t recomputed = recompute_layers.value_or(0);
  MIMO_RETURN_IF_ERROR(CheckValue(recomputed >= 0 && recomputed <= num_layers,
                                  "recompute_layers", recomputed,
                                  "0 to num_layers"));
  if (hidden_size % num_attention_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("hidden_size: ", hidden_size, ", wanted a multiple of ",
                     num_attention_heads, " num_attention_heads"));
  }
  MIMO_RETURN_IF_ERROR(
      CheckHeadDim(hidden_size / num_attention_heads, "hidden_size"));
  if (patch_size > image_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("patch_size: ", patch_size, ", wanted at most image_size ",
                     image_size));
  }
  MIMO_RETURN_IF_ERROR(CheckSizes(
      1, {{"patch_size squared", patch_size * patch_size},
          {"num_channels of a patch's values",
           num_channels * std::min<int64_t>(patch_size * patch_size, 1 << 21)},
          {"image_size over patch_size, squared", patches()}}));
  if (layers_used() < 0 || layers_used() > num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("feature_layer: ", feature_layer, ", wanted ",
                     -num_layers - 1, " to ", num_layers));
  }
  return absl::OkStatus();
}

namespace {

BuildContext WithWholeImages(BuildContext build) {
  build.parallel.cp = nullptr;
  return build;
}

}  // namespace

ClipVit::ClipVit(BuildContext build, const ClipVitConfig& config)
    : ModalityEncoder(WithWholeImages(std::move(build))), config_(config) {
  const ParallelGroups& parallel = this->build().parallel;
  if (parallel.IsFirstStage()) {
    const Init init = {.std = config.position_embedding_std};
    class_token_ = &AddParameter("class_token", {config.hidden_size}, init);
    position_ = &AddParameter("position_embedding.weight",
                              {1 + config.patches(), config.hidden_size}, init);
    BuildContext patch = this->build().Child("patch_embedding");
    patch.quantization = Quantization::kNone;  // pixels are no layer's output
    auto embedding = std::make_unique<LinearLayer>(
        std::move(patch),
        config.num_channels * config.patch_size * config.patch_size,
        config.hidden_size, /*bias=*/false, config.init_std);
    patch_ = embedding.get();
    AdoptChild(std::move(embedding));
    pre_norm_ = &AddChild<NormLayer>("pre_norm", NormKind::kLayer,
                                     config.hidden_size, config.norm_epsilon);
  }
  const Shard part =
      LayersOfStage(config.num_layers, parallel.pp_size(), parallel.pp_rank());
  layers_ = &AddChild<TransformerStack>(
      "layers",
      TransformerConfig{
          .hidden_size = config.hidden_size,
          .ffn_hidden_size = config.ffn_hidden_size,
          .heads = config.num_attention_heads,
          .kv_heads = config.num_attention_heads,
          .head_dim = config.hidden_size / config.num_attention_heads,
          .norm = NormKind::kLayer,
          .norm_epsilon = config.norm_epsilon,
          .bias = true,
          .gated = false,
          .activation = config.activation,
          .causal = false,
          .init_std = config.init_std,
          .recompute = config.recompute,
          .recompute_layers = config.recompute_layers},
      config.num_layers, part);
  layers_run_ =
      std::clamp<int64_t>(config.layers_used() - part.begin, 0, part.size);
  for (int64_t i = layers_run_; i < part.size; ++i) layers_->layer(i).Freeze();
  if (parallel.IsLastStage()) {
    AddChild<NormLayer>("post_norm", NormKind::kLayer, config.hidden_size,
                        config.norm_epsilon)
        .Freeze();
  }
}

absl::StatusOr<Var> ClipVit::Forward(const Context& ctx,
                                     const Tensor& pixels) const {
  const Shape wanted = {pixels.rank() == 4 ? pixels.dim(0) : 0,
                        config_.num_channels, config_.image_size,
                        config_.image_size};
  if (pixels.shape() != wanted) {
    return absl::InvalidArgumentError(
        absl::StrCat(path(), ": pixels ", ToString(pixels.shape()),
                     ", wanted [images, ", config_.num_channels, ", ",
                     config_.image_size, ", ", config_.image_size, "]"));
  }
  CHECK(patch_ != nullptr) << path() << ": no first stage";
  const ModuleScope scope(ctx, path());
  const int64_t images = wanted[0];
  Var x{ctx.Empty(
      {images * config_.patches(),
       config_.num_channels * config_.patch_size * config_.patch_size},
      pixels.dtype())};
  kernels::PatchForward({.in = pixels.data(),
                         .out = x.value.data(),
                         .images = images,
                         .channels = config_.num_channels,
                         .height = config_.image_size,
                         .width = config_.image_size,
                         .patch_size = config_.patch_size,
                         .dtype = pixels.dtype()},
                        ctx.compute);
  x = patch_->Forward(ctx, x);                          // [images*P, H]
  x = VisionTokens(ctx, x, *class_token_, *position_);  // [images*(1+P), H]
  x = SliceTokensGatherGrad(ctx, x, build().parallel.tokens());
  return RunLayers(ctx, pre_norm_->Forward(ctx, x).normalized, images);
}

Shape ClipVit::PassedShape(int64_t images) const {
  const int64_t tokens = images * (1 + config_.patches());
  return {TokensOfRank(tokens, build().parallel.tokens()), config_.hidden_size};
}

Var ClipVit::Continue(const Context& ctx, const Var& passed,
                      int64_t images) const {
  const ModuleScope scope(ctx, path());
  return RunLayers(ctx, passed, images);
}

Var ClipVit::RunLayers(const Context& ctx, const Var& tokens,
                       int64_t images) const {
  const int64_t seq = config_.patches() + 1;
  const Residual r = layers_->Forward(
      ctx, {tokens, Var()}, {.batch = images, .seq = seq}, layers_run_);
  const Var x =
      r.pending.value.defined() ? Add(ctx, r.stream, r.pending) : r.stream;
  const ParallelGroups& parallel = build().parallel;
  if (!parallel.IsLastStage()) return x;
  const Var all =
      GatherTokensSliceGrad(ctx, x, images * seq, parallel.tokens());
  if (config_.feature_select_strategy == FeatureSelect::kFull) return all;
  return DropClassTokens(ctx, all, seq);
}

}  // namespace mimo
