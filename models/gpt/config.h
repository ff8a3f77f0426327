// GptConfig: sizes of a Llama-style decoder. Defaults: Vicuna-7B.
#ifndef MIMO_MODELS_GPT_CONFIG_H_
#define MIMO_MODELS_GPT_CONFIG_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "kernels/base/dtype.h"
#include "mimo/config/dtype_names.h"
#include "models/transformer/recompute.h"

namespace mimo {

struct GptConfig {
  int64_t num_layers = 32;
  int64_t hidden_size = 4096;
  int64_t ffn_hidden_size = 11008;
  int64_t num_attention_heads = 32;
  int64_t num_query_groups = 0;  // 0: num_attention_heads
  int64_t kv_channels = 0;       // head size; 0: hidden / heads
  int64_t vocab_size = 32256;
  int64_t max_sequence_length = 4096;
  double rotary_base = 10000;
  double norm_epsilon = 1e-5;
  bool tie_word_embeddings = false;
  // Float32: the logits of a bfloat16 model too; absent: the run's dtype.
  std::optional<DType> logit_dtype;
  double init_std = 0.02;  // of weights and the token embedding at the start
  Recompute recompute = Recompute::kOff;    // activation checkpointing
  std::optional<int64_t> recompute_layers;  // of the first so many; else of all

  template <typename V>
  void Fields(V& v) {
    v("num_layers", num_layers);
    v("hidden_size", hidden_size);
    v("ffn_hidden_size", ffn_hidden_size);
    v("num_attention_heads", num_attention_heads);
    v("num_query_groups", num_query_groups);
    v("kv_channels", kv_channels);
    v("vocab_size", vocab_size);
    v("max_sequence_length", max_sequence_length);
    v("rotary_base", rotary_base);
    v("norm_epsilon", norm_epsilon);
    v("tie_word_embeddings", tie_word_embeddings);
    v("logit_dtype", logit_dtype);
    v("init_std", init_std);
    v("recompute", recompute);
    v("recompute_layers", recompute_layers);
  }
  absl::Status Validate() const;
  absl::Status CheckTensorParallel(int tp) const;
  absl::Status CheckPipeline(int pp) const;

  int64_t groups() const {
    return num_query_groups > 0 ? num_query_groups : num_attention_heads;
  }
  int64_t head_dim() const {
    return kv_channels > 0 ? kv_channels : hidden_size / num_attention_heads;
  }
};

}  // namespace mimo

#endif  // MIMO_MODELS_GPT_CONFIG_H_
