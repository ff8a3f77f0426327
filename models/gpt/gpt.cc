#include "models/gpt/gpt.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/device.h"
#include "kernels/base/status_macros.h"
#include "kernels/elementwise/copy_2d.h"
#include "kernels/gemm/gemm.h"
#include "kernels/loss/arg_max.h"
#include "kernels/rotary/rotary.h"
#include "mimo/autograd/module_scope.h"
#include "mimo/autograd/ops/collectives.h"
#include "mimo/autograd/ops/head_loss.h"
#include "mimo/autograd/ops/ring_attention.h"
#include "mimo/config/check.h"

namespace mimo {
namespace {

TransformerConfig Transformer(const GptConfig& config) {
  return {.hidden_size = config.hidden_size,
          .ffn_hidden_size = config.ffn_hidden_size,
          .heads = config.num_attention_heads,
          .kv_heads = config.groups(),
          .head_dim = config.head_dim(),
          .norm = NormKind::kRms,
          .norm_epsilon = config.norm_epsilon,
          .bias = false,
          .gated = true,
          .activation = Activation::kSilu,
          .causal = true,
          .init_std = config.init_std,
          .recompute = config.recompute,
          .recompute_layers = config.recompute_layers};
}

}  // namespace

absl::Status GptConfig::CheckTensorParallel(int tp) const {
  MIMO_RETURN_IF_ERROR(CheckHeads(num_attention_heads, groups(), tp));
  return CheckParts(
      tp, {{"ffn_hidden_size", ffn_hidden_size}, {"vocab_size", vocab_size}});
}

absl::Status GptConfig::CheckPipeline(int pp) const {
  return CheckLayers(num_layers, pp);
}

absl::Status GptConfig::Validate() const {
  MIMO_RETURN_IF_ERROR(
      CheckSizes(1, {{"num_layers", num_layers},
                     {"hidden_size", hidden_size},
                     {"ffn_hidden_size", ffn_hidden_size},
                     {"num_attention_heads", num_attention_heads},
                     {"vocab_size", vocab_size},
                     {"max_sequence_length", max_sequence_length}}));
  MIMO_RETURN_IF_ERROR(CheckSizes(0, {{"num_query_groups", num_query_groups},
                                      {"kv_channels", kv_channels}}));
  MIMO_RETURN_IF_ERROR(CheckValue(num_layers <= 10000, "num_layers", num_layers,
                                  "at most 10000"));
  MIMO_RETURN_IF_ERROR(
      CheckValue(rotary_base > 0, "rotary_base", rotary_base, "> 0"));
  MIMO_RETURN_IF_ERROR(
      CheckValue(norm_epsilon > 0, "norm_epsilon", norm_epsilon, "> 0"));
  if (logit_dtype && *logit_dtype != DType::kFloat32) {
    return absl::InvalidArgumentError(
        absl::StrCat("logit_dtype: ", Name(*logit_dtype),
                     ", wanted float32, or no such key: the run's dtype"));
  }
  MIMO_RETURN_IF_ERROR(CheckValue(init_std >= 0, "init_std", init_std, ">= 0"));
  const int64_t recomputed = recompute_layers.value_or(0);
  MIMO_RETURN_IF_ERROR(CheckValue(recomputed >= 0 && recomputed <= num_layers,
                                  "recompute_layers", recomputed,
                                  "0 to num_layers"));
  if (kv_channels == 0 && hidden_size % num_attention_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "hidden_size: ", hidden_size, ", wanted a multiple of ",
        num_attention_heads, " num_attention_heads (or set kv_channels)"));
  }
  MIMO_RETURN_IF_ERROR(CheckHeadDim(
      head_dim(), kv_channels == 0 ? "hidden_size" : "kv_channels"));
  if (head_dim() % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_channels: head size ", head_dim(),
                     ", wanted an even number (rotary embedding turns pairs)"));
  }
  MIMO_RETURN_IF_ERROR(
      CheckSizes(1, {{"kv_channels times the heads",
                      (num_attention_heads + 2 * groups()) * head_dim()}}));
  if (num_attention_heads % groups() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_query_groups: ", groups(), ", wanted a divisor of ",
                     num_attention_heads, " num_attention_heads"));
  }
  return absl::OkStatus();
}

GptModel::GptModel(BuildContext build, const GptConfig& config)
    : LanguageModel(std::move(build)),
      config_(config),
      transformer_(Transformer(config)) {
  const ParallelGroups& parallel = this->build().parallel;
  if (parallel.IsFirstStage()) embedding_ = &AddTable("embedding.weight");
  layers_ = &AddChild<TransformerStack>(
      "layers", transformer_, config.num_layers,
      LayersOfStage(config.num_layers, parallel.pp_size(), parallel.pp_rank()));
  if (parallel.IsLastStage()) {
    final_norm_ = &AddChild<NormLayer>("final_norm", NormKind::kRms,
                                       config.hidden_size, config.norm_epsilon);
    head_ = config.tie_word_embeddings && embedding_ != nullptr
                ? embedding_
                : &AddTable(config.tie_word_embeddings ? "embedding.weight"
                                                       : "head.weight");
  }
  if (this->build().meta) return;
  const DType table = AccumulatorOf(this->build().dtype);
  const Shape shape = {
      ContextParallelLength(config.max_sequence_length, parallel.cp_size()),
      config.head_dim() / 2};
  Allocator host;
  const Tensor cos(host, shape, table), sin(host, shape, table);
  kernels::RotaryTable(cos.data(), sin.data(), shape[0], config.head_dim(),
                       config.rotary_base, this->build().dtype);
  cos_ = cos.Clone(*this->build().allocator);
  sin_ = sin.Clone(*this->build().allocator);
}

Parameter& GptModel::AddTable(const char* name) {
  Parameter& table = AddParameter(
      name, {config_.vocab_size, config_.hidden_size},
      {.std = config_.init_std}, {0, {build().PartOf(config_.vocab_size)}});
  if (config_.tie_word_embeddings && build().parallel.pp_size() > 1) {
    table.stage_copies = 2;
    table.stage_copy = build().parallel.IsFirstStage() ? 0 : 1;
  }
  return table;
}

Parameter& GptModel::embedding() const {
  CHECK(embedding_ != nullptr) << path() << ": no first stage";
  return *embedding_;
}

Var GptModel::Embed(const Context& ctx, const Tensor& ids,
                    const std::vector<PlacedRows>& placed) const {
  return EmbedAndPlace(ctx, ids, embedding(), placed, build().parallel);
}

Var GptModel::Forward(const Context& ctx, const Var& embeddings, int64_t batch,
                      int64_t seq, std::vector<KvCache>* caches, int64_t cached,
                      const Tensor& rows, const Packing& packing) const {
  const ModuleScope scope(ctx, path());
  Communicator* tokens = build().parallel.tokens();
  Tensor wanted = rows;
  if (rows.defined() && tokens != nullptr) {
    wanted = PadIndices(ctx, rows,
                        TokensOfRank(rows.numel(), tokens) * tokens->size());
  }
  const Sequence sequence = {.batch = batch,
                             .seq = seq,
                             .rotary = Rotary{cos_, sin_, seq, cached},
                             .packing = packing,
                             .caches = caches,
                             .cached = cached,
                             .rows = wanted};
  const Residual x =
      layers_->Forward(ctx, {embeddings, Var()}, sequence, layers_->size());
  if (final_norm_ == nullptr) return Add(ctx, x.stream, x.pending);
  const Var hidden = final_norm_->Forward(ctx, x.stream, x.pending).normalized;
  if (caches == nullptr) return hidden;
  return GatherTokensSliceGrad(ctx, hidden, batch * seq, tokens);
}

Var GptModel::Loss(const Context& ctx, const Var& hidden, const Tensor& targets,
                   const Tensor& dloss) const {
  const ModuleScope scope(ctx, path());
  return HeadLoss(ctx, hidden, *head_, targets, dloss, build().parallel,
                  logit_dtype());
}

Tensor GptModel::Predict(const Context& ctx, const Tensor& hidden,
                         int64_t rows) const {
  const ModuleScope scope(ctx, path());
  constexpr int64_t kLogits = int64_t{1} << 24;  // that exist at a time
  const int64_t chunk = std::max<int64_t>(kLogits / config_.vocab_size, 1);
  const Tensor tokens = ctx.Empty({rows}, DType::kInt32);
  if (rows == 0) return tokens;
  const Tensor all =
      GatherTokensSliceGrad(ctx, {hidden}, rows, build().parallel.tokens())
          .value;
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t end = std::min(begin + chunk, rows);
    const Tensor logits = Logits(ctx, all.Rows(begin, end));
    kernels::ArgMax({.logits = logits.data(),
                     .tokens = tokens.pointer<int32_t>() + begin,
                     .rows = end - begin,
                     .vocab = config_.vocab_size,
                     .dtype = logits.dtype()},
                    ctx.compute);
  }
  return tokens;
}

Tensor GptModel::Logits(const Context& ctx, const Tensor& hidden) const {
  const int64_t rows = hidden.dim(0), vocab = config_.vocab_size;
  const Tensor part = ctx.Empty({rows, head_->data.dim(0)}, logit_dtype());
  kernels::Gemm({.a = hidden.data(),
                 .b = head_->Values().data(),
                 .c = part.data(),
                 .m = rows,
                 .n = part.dim(1),
                 .k = hidden.dim(1),
                 .transpose_b = true,
                 .dtype = hidden.dtype(),
                 .c_dtype = part.dtype()},
                ctx.compute);
  Communicator* tp = build().parallel.tp;
  if (tp == nullptr) return part;
  // Each rank's part of the columns, all as wide as the widest.
  const int64_t width = (vocab - 1) / tp->size() + 1;
  const auto copy = [&](const Tensor& from, int64_t from_stride, void* to,
                        int64_t to_stride, int64_t columns) {
    kernels::Copy2d({.src = from.data(),
                     .src_stride = from_stride,
                     .dst = to,
                     .dst_stride = to_stride,
                     .rows = rows,
                     .columns = columns,
                     .dtype = part.dtype()},
                    ctx.compute);
  };
  const Tensor padded = ctx.Empty({rows, width}, part.dtype());
  copy(part, part.dim(1), padded.data(), width, part.dim(1));
  const Tensor parts = GatherTokens(ctx, padded, *tp);
  WaitFor(ctx.compute, ctx.comm);
  Tensor logits = ctx.Empty({rows, vocab}, part.dtype());
  for (int rank = 0; rank < tp->size(); ++rank) {
    const Shard columns = PartOf(vocab, tp->size(), rank);
    copy(parts.Rows(rank * rows, (rank + 1) * rows), width,
         static_cast<char*>(logits.data()) +
             columns.begin * SizeOf(logits.dtype()),
         vocab, columns.size);
  }
  return logits;
}

std::vector<KvCache> GptModel::MakeCaches(const Context& ctx, int64_t batch,
                                          int64_t capacity) const {
  return mimo::MakeCaches(ctx, HeadParts(transformer_, build()).groups.size,
                          config_.head_dim(), layers_->size(), batch, capacity,
                          build().dtype);
}

}  // namespace mimo
