// TransformerLayer: attention and feed-forward around a residual stream, in the
// two forms that mimo's models need.
//   Llama: RMS norm, rotary embedding, causal, gated feed-forward, no bias
//   CLIP:  layer norm, full attention, plain feed-forward, bias
// Over tp ranks (mimo/nn/parallel_groups.h) each rank has some heads and some
// of F. More ranks than key/value heads: several ranks have copies of one and
// some of its query heads each. Source: Vaswani et al. 2017, arXiv:1706.03762,
// pre-norm as in Radford 2019.
#ifndef MIMO_MODELS_TRANSFORMER_LAYER_H_
#define MIMO_MODELS_TRANSFORMER_LAYER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "mimo/autograd/ops/attention.h"
#include "mimo/autograd/ops/linear.h"
#include "mimo/nn/layers.h"
#include "mimo/nn/module.h"
#include "models/transformer/recompute.h"

namespace mimo {

struct TransformerConfig {
  int64_t hidden_size;      // H
  int64_t ffn_hidden_size;  // F
  int64_t heads, kv_heads;  // N, G
  int64_t head_dim;         // D
  NormKind norm;
  double norm_epsilon;
  bool bias;   // of every linear layer
  bool gated;  // feed-forward is fc2(silu(gate) * up), [gate; up] = fc1
  Activation activation;  // of a feed-forward that is not gated
  bool causal;
  double init_std;
  Recompute recompute = Recompute::kOff;
  std::optional<int64_t> recompute_layers;  // of the first layers; else of all
};

// Which heads a tp rank has: those of its groups, or, when ranks share a group,
// some of its query heads and a copy of the group's key and value.
struct HeadParts {
  HeadParts(const TransformerConfig& config, const BuildContext& build);
  Shard queries, groups;  // of N, of G
};
// OK if attention has a kernel for heads of this size, on any device.
absl::Status CheckHeadDim(int64_t head_dim, absl::string_view key);
// OK if every rank of `tp` has a head.
absl::Status CheckHeads(int64_t heads, int64_t kv_heads, int tp);

// Keys and values of the tokens that one layer has seen.
struct KvCache {
  Tensor k, v;  // [B, capacity, G*D]
};

// What the tokens [B*S, ...] of a forward pass are. With sequence parallelism,
// the residual stream is token-sharded (mimo/autograd/ops/collectives.h).
struct Sequence {
  // B, S. Over cp ranks S is this rank's tokens of a sample, and the rows are
  // two halves (mimo/autograd/ops/ring_attention.h).
  int64_t batch, seq;
  std::optional<Rotary> rotary;
  Packing packing = {};  // S: the longest sample's
  // Generation: S new tokens after `cached` ones; a cache a layer.
  std::vector<KvCache>* caches = nullptr;
  int64_t cached = 0;
  // Rows [L] int32 of the last layer's output that are wanted (-1: a row of
  // zeros); undefined: all. What the others would cost after attention is
  // saved. Token-sharded, L is a multiple of the ranks.
  Tensor rows = {};
};

// The residual stream [B*S, H] as its last sum and what is still to be added
// (undefined at the start), so that the addition is done by the next norm.
struct Residual {
  Var stream;
  Var pending;
};

class SelfAttention : public Module {
 public:
  SelfAttention(BuildContext build, const TransformerConfig& config);
  // x [B*S, H] -> [B*S, H]. `cache`: this layer's, when generating.
  Var Forward(const Context& ctx, const Var& x, const Sequence& sequence,
              KvCache* cache) const;

 private:
  SelfAttention(BuildContext build, const TransformerConfig& config,
                const HeadParts& parts);
  Tensor Cached(const Context& ctx, const Tensor& qkv, const Sequence& sequence,
                KvCache& cache) const;

  TransformerConfig config_;  // heads and kv_heads are this rank's
  LinearLayer& qkv_;          // [(N + 2G) D, H]: query, key, value heads
  LinearLayer& proj_;         // [H, N*D]
};

class FeedForward : public Module {
 public:
  FeedForward(BuildContext build, const TransformerConfig& config);
  // [T, H] -> [T, H]. `again`: records only what the backward needs; the value
  // is undefined.
  Var Forward(const Context& ctx, const Var& x, bool again) const;

 private:
  TransformerConfig config_;
  LinearLayer& fc1_;  // [F, H], or [2F, H] when gated: gate, then up
  LinearLayer& fc2_;  // [H, F]
};

class TransformerLayer : public Module {
 public:
  TransformerLayer(BuildContext build, const TransformerConfig& config);
  Residual Forward(const Context& ctx, const Residual& x,
                   const Sequence& sequence, KvCache* cache) const;

 private:
  // Norm and attention; norm and feed-forward.
  Residual Attend(const Context& ctx, const Residual& x,
                  const Sequence& sequence, KvCache* cache) const;
  Residual Feed(const Context& ctx, const Residual& x, bool again) const;
  Var WantedOfStream(const Context& ctx, const Var& x,
                     const Sequence& sequence) const;

  Recompute recompute_;
  NormLayer& input_norm_;
  SelfAttention& attention_;
  NormLayer& mlp_norm_;
  FeedForward& mlp_;
};

// Of `count` layers the pipeline stage that layer i is on, and those of a
// stage: none has fewer than a later one.
int64_t StageOfLayer(int64_t i, int64_t count, int64_t stages);
Shard LayersOfStage(int64_t count, int stages, int stage);
// OK if every stage of `pp` has a layer.
absl::Status CheckLayers(int64_t num_layers, int pp);

// `count` layers named layers.0, layers.1, ...
class TransformerStack : public Module {
 public:
  // Of a model's `count` layers those of `part`, named by their places in it.
  TransformerStack(BuildContext build, const TransformerConfig& config,
                   int64_t count, Shard part);
  TransformerStack(BuildContext build, const TransformerConfig& config,
                   int64_t count)
      : TransformerStack(std::move(build), config, count, {0, count}) {}
  // Runs the first `count` layers.
  Residual Forward(const Context& ctx, Residual x, const Sequence& sequence,
                   int64_t count) const;
  int64_t size() const { return static_cast<int64_t>(layers_.size()); }
  TransformerLayer& layer(int64_t i) const { return *layers_[i]; }

 private:
  std::vector<TransformerLayer*> layers_;
};

// Empty caches of `layers` layers for up to `capacity` tokens of `kv_heads`.
std::vector<KvCache> MakeCaches(const Context& ctx, int64_t kv_heads,
                                int64_t head_dim, int64_t layers, int64_t batch,
                                int64_t capacity, DType dtype);

}  // namespace mimo

#endif  // MIMO_MODELS_TRANSFORMER_LAYER_H_
