#include "models/transformer/layer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/attention/attention.h"
#include "kernels/elementwise/copy_2d.h"
#include "mimo/autograd/checkpoint.h"
#include "mimo/autograd/module_scope.h"
#include "mimo/autograd/ops/attention.h"
#include "mimo/autograd/ops/collectives.h"
#include "mimo/autograd/ops/embedding.h"
#include "mimo/autograd/ops/ring_attention.h"

namespace mimo {
namespace {

kernels::AttentionShape ShapeOf(const TransformerConfig& config,
                                const Sequence& sequence) {
  return {.batch = sequence.batch,
          .seq_q = sequence.seq,
          .seq_k = sequence.cached + sequence.seq,
          .heads = config.heads,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .causal = config.causal,
          .scale = 1 / std::sqrt(static_cast<double>(config.head_dim))};
}

// body(ctx, x, again) as a checkpoint; `again`: nobody reads the values.
template <typename Body>
Residual Recomputed(const Context& ctx, const Residual& x,
                    const std::vector<Parameter*>& parameters,
                    const Body& body) {
  const std::vector<Var> out = Checkpoint(
      ctx, {x.stream, x.pending}, parameters,
      [body](const Context& inner, const std::vector<Var>& in) {
        Residual r = body(inner, {in[0], in[1]}, inner.tape != nullptr);
        return std::vector<Var>{r.stream, r.pending};
      });
  return {out[0], out[1]};
}

Var Wanted(const Context& ctx, const Var& x, const Sequence& sequence) {
  return sequence.rows.defined() ? SelectRows(ctx, x, sequence.rows) : x;
}

// Columns or rows of D for each head, behind `first` others.
Shard Scaled(Shard heads, int64_t head_dim, int64_t first = 0) {
  heads.begin = (first + heads.begin) * head_dim;
  heads.size *= head_dim;
  return heads;
}

}  // namespace

HeadParts::HeadParts(const TransformerConfig& config,
                     const BuildContext& build) {
  const int ranks = build.parallel.tp_size(), rank = build.parallel.tp_rank();
  const int64_t ratio = config.heads / config.kv_heads;
  if (ranks <= config.kv_heads) {
    groups = build.PartOf(config.kv_heads);
    queries = {groups.begin * ratio, groups.size * ratio};
    return;
  }
  // Rank r has group r*G/ranks; `first` is that group's first rank.
  const int64_t group = rank * config.kv_heads / ranks;
  const auto first_rank = [&](int64_t g) {
    return (g * ranks + config.kv_heads - 1) / config.kv_heads;
  };
  const int64_t first = first_rank(group);
  const int64_t copies = first_rank(group + 1) - first, copy = rank - first;
  groups = {group, 1, static_cast<int>(copies), static_cast<int>(copy)};
  const int64_t begin = ratio * copy / copies;
  queries = {group * ratio + begin, ratio * (copy + 1) / copies - begin};
}

absl::Status CheckHeadDim(int64_t head_dim, absl::string_view key) {
  if (head_dim <= 256) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(key, ": head size ", head_dim, ", wanted at most 256"));
}

absl::Status CheckHeads(int64_t heads, int64_t kv_heads, int tp) {
  // Ranks that share the group that most share.
  const int64_t copies = (tp + kv_heads - 1) / kv_heads;
  if (copies <= std::max<int64_t>(heads / kv_heads, 1)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor_model_parallel_size: ", tp, ", wanted a head for each rank of ",
      heads, " num_attention_heads in ", kv_heads, " groups"));
}

SelfAttention::SelfAttention(BuildContext build,
                             const TransformerConfig& config)
    : SelfAttention(build, config, HeadParts(config, build)) {}

SelfAttention::SelfAttention(BuildContext build,
                             const TransformerConfig& config,
                             const HeadParts& parts)
    : Module(std::move(build)),
      config_(config),
      qkv_(AddChild<LinearLayer>(
          "qkv", config.hidden_size,
          (config.heads + 2 * config.kv_heads) * config.head_dim, config.bias,
          config.init_std, LinearSplit::kColumn,
          std::vector<Shard>{
              Scaled(parts.queries, config.head_dim),
              Scaled(parts.groups, config.head_dim, config.heads),
              Scaled(parts.groups, config.head_dim,
                     config.heads + config.kv_heads)})),
      proj_(AddChild<LinearLayer>(
          "proj", config.heads * config.head_dim, config.hidden_size,
          config.bias, config.init_std, LinearSplit::kRow,
          std::vector<Shard>{Scaled(parts.queries, config.head_dim)})) {
  config_.heads = parts.queries.size;
  config_.kv_heads = parts.groups.size;
}

Var SelfAttention::Forward(const Context& ctx, const Var& x,
                           const Sequence& sequence, KvCache* cache) const {
  const ModuleScope scope(ctx, path());
  const Rotary* rotary = sequence.rotary ? &*sequence.rotary : nullptr;
  const Var qkv = qkv_.Forward(ctx, x);
  if (cache != nullptr) {
    CHECK(ctx.tape == nullptr) << "a KV cache has no backward";
    CHECK_EQ(build().parallel.cp_size(), 1) << "a KV cache on one cp rank";
    if (rotary != nullptr)
      ApplyRotary(ctx, qkv.value, *rotary, config_.heads + config_.kv_heads,
                  config_.head_dim);
    return proj_.Forward(ctx, Var{Cached(ctx, qkv.value, sequence, *cache)});
  }
  kernels::AttentionShape shape = ShapeOf(config_, sequence);
  const ParallelGroups& groups = build().parallel;
  Communicator* cp = groups.cp_size() > 1 ? groups.cp : nullptr;
  if (cp != nullptr) shape.seq_q = shape.seq_k = sequence.seq / 2;  // a chunk
  const Var attended =
      cp == nullptr
          ? Attention(ctx, qkv, shape, rotary, sequence.packing)
          : RingAttention(ctx, qkv, shape, *cp, rotary, sequence.packing);
  return proj_.Forward(ctx, Wanted(ctx, attended, sequence));
}

// Appends the new keys and values to the cache and attends to all of it.
// qkv [B*S, (N + 2G) D] -> [B*S, N*D]
Tensor SelfAttention::Cached(const Context& ctx, const Tensor& qkv,
                             const Sequence& sequence, KvCache& cache) const {
  const int64_t size = SizeOf(qkv.dtype());
  const int64_t row = qkv.dim(1);
  const int64_t width = config_.kv_heads * config_.head_dim;  // G*D
  const int64_t capacity = cache.k.dim(1);
  CHECK_LE(sequence.cached + sequence.seq, capacity) << path();
  const char* keys = static_cast<const char*>(qkv.data()) +
                     config_.heads * config_.head_dim * size;
  for (int64_t b = 0; b < sequence.batch; ++b) {
    for (const auto& [source, target] :
         {std::pair(keys, &cache.k),
          std::pair(keys + width * size, &cache.v)}) {
      kernels::Copy2d({.src = source + b * sequence.seq * row * size,
                       .src_stride = row,
                       .dst = static_cast<char*>(target->data()) +
                              (b * capacity + sequence.cached) * width * size,
                       .dst_stride = width,
                       .rows = sequence.seq,
                       .columns = width,
                       .dtype = qkv.dtype()},
                      ctx.compute);
    }
  }
  Tensor out =
      ctx.Empty({qkv.dim(0), config_.heads * config_.head_dim}, qkv.dtype());
  const Tensor lse = ctx.Empty({sequence.batch, config_.heads, sequence.seq},
                               AccumulatorOf(qkv.dtype()));
  kernels::AttentionForward({.shape = ShapeOf(config_, sequence),
                             .q = qkv.data(),
                             .k = cache.k.data(),
                             .v = cache.v.data(),
                             .q_stride = row,
                             .kv_stride = width,
                             .kv_batch_stride = capacity * width,
                             .out = out.data(),
                             .lse = lse.data(),
                             .dtype = qkv.dtype()},
                            ctx.compute);
  return out;
}

FeedForward::FeedForward(BuildContext build, const TransformerConfig& config)
    : Module(std::move(build)),
      config_(config),
      fc1_(AddChild<LinearLayer>(
          "fc1", config.hidden_size,
          config.gated ? 2 * config.ffn_hidden_size : config.ffn_hidden_size,
          config.bias, config.init_std, LinearSplit::kColumn,
          [&] {
            const Shard part = this->build().PartOf(config.ffn_hidden_size);
            std::vector<Shard> shards = {part};
            if (config.gated)
              shards.push_back(
                  {config.ffn_hidden_size + part.begin, part.size});
            return shards;
          }())),
      fc2_(AddChild<LinearLayer>("fc2", config.ffn_hidden_size,
                                 config.hidden_size, config.bias,
                                 config.init_std, LinearSplit::kRow)) {}

Var FeedForward::Forward(const Context& ctx, const Var& x, bool again) const {
  const ModuleScope scope(ctx, path());
  const Var y = config_.gated ? SiluGate(ctx, fc1_.Forward(ctx, x))
                              : fc1_.Forward(ctx, x, config_.activation);
  return again ? fc2_.Record(ctx, y) : fc2_.Forward(ctx, y);
}

TransformerLayer::TransformerLayer(BuildContext build,
                                   const TransformerConfig& config)
    : Module(std::move(build)),
      recompute_(config.recompute),
      input_norm_(AddChild<NormLayer>("input_norm", config.norm,
                                      config.hidden_size, config.norm_epsilon)),
      attention_(AddChild<SelfAttention>("attention", config)),
      mlp_norm_(AddChild<NormLayer>("mlp_norm", config.norm, config.hidden_size,
                                    config.norm_epsilon)),
      mlp_(AddChild<FeedForward>("mlp", config)) {}

Residual TransformerLayer::Forward(const Context& ctx, const Residual& x,
                                   const Sequence& sequence,
                                   KvCache* cache) const {
  const ModuleScope scope(ctx, path());
  if (recompute_ == Recompute::kFull) {
    return Recomputed(
        ctx, x, Parameters(),
        [=, this](const Context& inner, const Residual& in, bool again) {
          return Feed(inner, Attend(inner, in, sequence, cache), again);
        });
  }
  const Residual attended = Attend(ctx, x, sequence, cache);
  if (recompute_ == Recompute::kSelective) {
    std::vector<Parameter*> fed = mlp_norm_.Parameters();
    const std::vector<Parameter*> mlp = mlp_.Parameters();
    fed.insert(fed.end(), mlp.begin(), mlp.end());
    return Recomputed(ctx, attended, fed,
                      [this](const Context& inner, const Residual& in,
                             bool again) { return Feed(inner, in, again); });
  }
  return Feed(ctx, attended, /*again=*/false);
}

Residual TransformerLayer::Attend(const Context& ctx, const Residual& x,
                                  const Sequence& sequence,
                                  KvCache* cache) const {
  const NormOutput n = input_norm_.Forward(ctx, x.stream, x.pending);
  return {WantedOfStream(ctx, n.sum, sequence),
          attention_.Forward(ctx, n.normalized, sequence, cache)};
}

// As Wanted, of the residual stream; token-sharded, this rank's part of the
// rows.
Var TransformerLayer::WantedOfStream(const Context& ctx, const Var& x,
                                     const Sequence& sequence) const {
  Communicator* tp = build().parallel.tokens();
  if (!sequence.rows.defined() || tp == nullptr)
    return Wanted(ctx, x, sequence);
  const int64_t part = sequence.rows.numel() / tp->size();
  CHECK_EQ(part * tp->size(), sequence.rows.numel()) << path();
  return SelectRows(
      ctx, GatherTokensReduceGrad(ctx, x, tp),
      sequence.rows.Rows(tp->rank() * part, (tp->rank() + 1) * part));
}

Residual TransformerLayer::Feed(const Context& ctx, const Residual& x,
                                bool again) const {
  const NormOutput n = mlp_norm_.Forward(ctx, x.stream, x.pending);
  return {n.sum, mlp_.Forward(ctx, n.normalized, again)};
}

int64_t StageOfLayer(int64_t i, int64_t count, int64_t stages) {
  return i * stages / count;
}

Shard LayersOfStage(int64_t count, int stages, int stage) {
  const auto begin =
      [&](int64_t of) {  // the first that StageOfLayer puts there
        return (of * count + stages - 1) / stages;
      };
  return {begin(stage), begin(stage + 1) - begin(stage)};
}

absl::Status CheckLayers(int64_t num_layers, int pp) {
  if (num_layers >= pp) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("num_layers: ", num_layers,
                   ", wanted at least one for each ", "of ", pp, " stages"));
}

TransformerStack::TransformerStack(BuildContext build,
                                   const TransformerConfig& config,
                                   int64_t count, Shard part)
    : Module(std::move(build)) {
  TransformerConfig plain = config;
  plain.recompute = Recompute::kOff;
  for (int64_t i = part.begin; i < part.begin + part.size; ++i) {
    layers_.push_back(&AddChild<TransformerLayer>(
        absl::StrCat(i),
        i < config.recompute_layers.value_or(count) ? config : plain));
  }
}

Residual TransformerStack::Forward(const Context& ctx, Residual x,
                                   const Sequence& sequence,
                                   int64_t count) const {
  CHECK_LE(count, size());
  Sequence inner = sequence;  // of the layers before the last
  inner.rows = Tensor();
  for (int64_t i = 0; i < count; ++i) {
    KvCache* cache =
        sequence.caches == nullptr ? nullptr : &(*sequence.caches)[i];
    x = layers_[i]->Forward(ctx, x, i + 1 < count ? inner : sequence, cache);
  }
  return x;
}

std::vector<KvCache> MakeCaches(const Context& ctx, int64_t kv_heads,
                                int64_t head_dim, int64_t layers, int64_t batch,
                                int64_t capacity, DType dtype) {
  std::vector<KvCache> caches(layers);
  const Shape shape = {batch, capacity, kv_heads * head_dim};
  for (KvCache& cache : caches) {
    cache.k = ctx.Empty(shape, dtype);
    cache.v = ctx.Empty(shape, dtype);
  }
  return caches;
}

}  // namespace mimo
