// Recompute: what a layer keeps for the backward pass, and what it computes
// again there (activation checkpointing, Chen et al. 2016, arXiv:1604.06174).
//
// Elements kept of a token and layer, beside one to five float32 statistics; H
// hidden, N query and G key heads of size D, F of the feed-forward. A frozen
// layer keeps less, as no weight gradient wants the products' inputs:
//
//                     trained               frozen
//   off, gated        4H + 2(N+G)D + 3F     2H + 2(N+G)D + 2F
//   off, not gated    4H + 2(N+G)D + 2F     2H + 2(N+G)D + F
//   selective         3H + 2(N+G)D          2H + 2(N+G)D
//   full              2H                    2H
//
// and FLOP run again a token, S the sequence (half of it if causal): selective
// 4HF (2HF not gated), full 2H(2N+2G)D + 4SND more. fc2's product is never run
// again: only its input is needed.
//
// Selective keeps attention's side whole and runs the rest again from the two
// terms of the residual sum: norm, fc1, gate. That is where a FLOP buys most
// bytes beside attention itself: F's three tensors come back from one product.
//
// Of tensor-parallel ranks each keeps all of H and its part of heads and F.
#ifndef MIMO_MODELS_TRANSFORMER_RECOMPUTE_H_
#define MIMO_MODELS_TRANSFORMER_RECOMPUTE_H_

#include <array>
#include <cstdint>
#include <utility>

#include "absl/strings/string_view.h"
#include "mimo/config/fields.h"

namespace mimo {

enum class Recompute { kOff, kSelective, kFull };
template <>
struct EnumNames<Recompute> {
  static constexpr std::array<std::pair<Recompute, absl::string_view>, 3>
      kNames = {{{Recompute::kOff, "off"},
                 {Recompute::kSelective, "selective"},
                 {Recompute::kFull, "full"}}};
};

struct LayerSizes {
  int64_t hidden, ffn, heads, kv_heads, head_dim;  // H, F, N, G, D
  bool gated;
};
// The table above: elements kept of a token and layer, `whole` by every
// tensor-parallel rank and `split` among them.
struct KeptElements {
  int64_t whole, split;
};
KeptElements KeptByLayer(const LayerSizes& sizes, Recompute recompute,
                         bool frozen);

}  // namespace mimo

#endif  // MIMO_MODELS_TRANSFORMER_RECOMPUTE_H_
