// Where a sample's rows are and which keys its queries see: always a prefix, as
// padding and the causal mask both hide a suffix.
#ifndef MIMO_KERNELS_ATTENTION_VISIBLE_KEYS_H_
#define MIMO_KERNELS_ATTENTION_VISIBLE_KEYS_H_

#include <algorithm>
#include <cstdint>

#include "kernels/attention/attention.h"

namespace mimo::kernels {

struct Sample {
  int64_t first_query;   // its first row of q, out, dq
  int64_t first_key;     // of k, v, dk, dv; a KV cache has its own stride
  int64_t queries;       // rows of q
  int64_t rows_k;        // rows of k: those behind the real keys are padding
  int64_t keys;          // real keys
  int64_t causal_shift;  // query i sees keys up to i + causal_shift

  // How many keys query i sees; grows with i.
  constexpr int64_t VisibleKeys(int64_t i) const {
    return std::max<int64_t>(std::min(keys, i + causal_shift + 1), 0);
  }
};

constexpr Sample SampleOf(const AttentionShape& s, const int32_t* key_lengths,
                          const int32_t* cu_seqlens, int64_t b) {
  Sample sample = {.first_query = b * s.seq_q,
                   .first_key = b * s.seq_k,
                   .queries = s.seq_q,
                   .rows_k = s.seq_k};
  if (cu_seqlens != nullptr) {
    sample.first_query = sample.first_key = cu_seqlens[b];
    sample.queries = sample.rows_k = cu_seqlens[b + 1] - cu_seqlens[b];
  }
  sample.keys = sample.rows_k;
  if (key_lengths != nullptr)
    sample.keys = std::min<int64_t>(sample.keys, key_lengths[b]);
  sample.causal_shift =
      s.causal ? sample.rows_k - sample.queries : sample.rows_k;
  return sample;
}

// Elements from k's or v's first to the sample's first.
constexpr int64_t KeyOffset(const Sample& sample, int64_t b, int64_t kv_stride,
                            int64_t kv_batch_stride) {
  return kv_batch_stride != 0 ? b * kv_batch_stride
                              : sample.first_key * kv_stride;
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ATTENTION_VISIBLE_KEYS_H_
