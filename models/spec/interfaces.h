// The three kinds of module a multi-modal model is made of. A user's own module
// derives from one of them and is added to a ModuleRegistry.
#ifndef MIMO_MODELS_SPEC_INTERFACES_H_
#define MIMO_MODELS_SPEC_INTERFACES_H_

#include <cstdint>
#include <vector>

#include "absl/log/log.h"
#include "absl/status/statusor.h"
#include "mimo/autograd/ops/embedding.h"
#include "mimo/autograd/tape.h"
#include "mimo/nn/module.h"
#include "models/transformer/layer.h"

namespace mimo {

// A decoder over embeddings [B*S, H].
class LanguageModel : public Module {
 public:
  using Module::Module;
  virtual int64_t hidden_size() const = 0;  // H
  virtual int64_t vocab_size() const = 0;   // V
  virtual int64_t max_sequence_length() const = 0;
  virtual Parameter& embedding() const = 0;  // [V, H]

  // Of tp ranks (mimo/nn/parallel_groups.h), all pass the same ids, rows,
  // targets and batches. With sequence parallelism, embeddings and hidden
  // states are token-sharded (mimo/autograd/ops/collectives.h): Embed makes
  // them so, Forward and Loss take them so. Generation's hidden states are
  // whole.
  // Of cp ranks, each passes its own tokens, ids to targets, as
  // ContextParallelRows picks them (mimo/autograd/ops/ring_attention.h), and S
  // of them a sample, at most ContextParallelLength(max_sequence_length) all
  // together; the loss is their sum. No generation.

  // ids [B*S] int32 -> embeddings [B*S, H], as EmbedAndPlace.
  virtual Var Embed(const Context& ctx, const Tensor& ids,
                    const std::vector<PlacedRows>& placed) const = 0;
  // Embeddings to final hidden states, [B*S, H] both. `caches` and `cached` as
  // in Sequence; positions go on from `cached`. `rows` [L] int32: the rows
  // whose states are wanted, [L, H] (zeros where -1); undefined: all. Packed, S
  // is the longest sample's.
  virtual Var Forward(const Context& ctx, const Var& embeddings, int64_t batch,
                      int64_t seq, std::vector<KvCache>* caches = nullptr,
                      int64_t cached = 0, const Tensor& rows = {},
                      const Packing& packing = {}) const = 0;
  // Sum of the cross-entropies of rows `hidden` [L, H] with `targets` [L] (what
  // each row predicts; < 0: ignored): [1] float64. `dloss`: the gradient that
  // the sum will be seeded with, when it is known already.
  virtual Var Loss(const Context& ctx, const Var& hidden, const Tensor& targets,
                   const Tensor& dloss) const = 0;
  // The likeliest token after each of `rows` hidden states, as Loss takes them:
  // [L] int32, the first of equals (kernels/loss/arg_max.h).
  virtual Tensor Predict(const Context& ctx, const Tensor& hidden,
                         int64_t rows) const = 0;
  virtual Tensor Logits(const Context& ctx, const Tensor& hidden) const = 0;
  virtual std::vector<KvCache> MakeCaches(const Context& ctx, int64_t batch,
                                          int64_t capacity) const = 0;
};

// From a modality's raw input to features.
class ModalityEncoder : public Module {
 public:
  using Module::Module;
  virtual int64_t output_size() const = 0;
  // input [items, ...], e.g. pixels [images, C, H, W]; an error when its shape
  // is not what the encoder takes. -> [items, tokens, output_size] or
  // [tokens, output_size]
  virtual absl::StatusOr<Var> Forward(const Context& ctx,
                                      const Tensor& input) const = 0;

  // Of a module that can have several pipeline stages (its config says so, in
  // CheckPipeline), where Forward is the first one's. The features of an item,
  // and what a stage passes to the next of some: [rows, width].
  virtual int64_t item_features() const {
    LOG(FATAL) << path() << " has one stage";
  }
  virtual Shape PassedShape(int64_t /*items*/) const {
    LOG(FATAL) << path() << " has one stage";
  }
  // A later stage: goes on from that; the last one gives the features.
  virtual Var Continue(const Context& /*ctx*/, const Var& /*passed*/,
                       int64_t /*items*/) const {
    LOG(FATAL) << path() << " has one stage";
  }
};

// From features [T, in] to the language model's space [T, H].
class Projection : public Module {
 public:
  using Module::Module;
  virtual int64_t input_size() const = 0;
  virtual int64_t output_size() const = 0;
  virtual Var Forward(const Context& ctx, const Var& features) const = 0;
};

}  // namespace mimo

#endif  // MIMO_MODELS_SPEC_INTERFACES_H_
