// GptModel: a Llama-style decoder. A pipeline stage has its part of the layers,
// the first one the embedding, and the last one the final norm and the head.
// Source: Touvron et al. 2023, arXiv:2302.13971, section 2.2.
#ifndef MIMO_MODELS_GPT_GPT_H_
#define MIMO_MODELS_GPT_GPT_H_

#include <vector>

#include "models/gpt/config.h"
#include "models/spec/interfaces.h"

namespace mimo {

class GptModel : public LanguageModel {
 public:
  GptModel(BuildContext build, const GptConfig& config);

  int64_t hidden_size() const override { return config_.hidden_size; }
  int64_t vocab_size() const override { return config_.vocab_size; }
  int64_t max_sequence_length() const override {
    return config_.max_sequence_length;
  }
  Parameter& embedding() const override;
  Var Embed(const Context& ctx, const Tensor& ids,
            const std::vector<PlacedRows>& placed) const override;
  Var Forward(const Context& ctx, const Var& embeddings, int64_t batch,
              int64_t seq, std::vector<KvCache>* caches, int64_t cached,
              const Tensor& rows, const Packing& packing) const override;
  Var Loss(const Context& ctx, const Var& hidden, const Tensor& targets,
           const Tensor& dloss) const override;
  Tensor Predict(const Context& ctx, const Tensor& hidden,
                 int64_t rows) const override;
  Tensor Logits(const Context& ctx, const Tensor& hidden) const override;
  std::vector<KvCache> MakeCaches(const Context& ctx, int64_t batch,
                                  int64_t capacity) const override;

 private:
  Parameter& AddTable(const char* name);
  DType logit_dtype() const {
    const DType dtype = build().dtype;
    return config_.logit_dtype ? AccumulatorOf(dtype) : dtype;
  }

  GptConfig config_;
  TransformerConfig transformer_;
  // Null on the stages that have none.
  Parameter* embedding_ = nullptr;  // embedding.weight [V, H], a part of V a tp
                                    // rank
  Parameter* head_ = nullptr;       // head.weight, likewise; the embedding when
                                    // tied, on the last stage a copy of it
  NormLayer* final_norm_ = nullptr;
  TransformerStack* layers_;
  // [max_sequence_length and the padding of cp ranks, D/2]
  Tensor cos_, sin_;
};

}  // namespace mimo

#endif  // MIMO_MODELS_GPT_GPT_H_
