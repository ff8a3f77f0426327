// The one table between Hugging Face's LLaVA tensors and our parameters, and
// the spellings of their names on disk.
//
// A parameter of ours is the concatenation, along dimension 0, of one or more
// of their tensors: the rows of attention.qkv are q_proj, k_proj, v_proj, those
// of mlp.fc1 of a gated feed-forward are gate_proj, up_proj.
#ifndef MIMO_MODELS_HF_NAMES_H_
#define MIMO_MODELS_HF_NAMES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "mimo/tensor/tensor.h"
#include "models/llava/config.h"

namespace mimo {

struct HfTensor {
  std::string name;  // canonical
  Shape shape;
  int64_t row;  // of our parameter, where it begins
};

struct HfParameter {
  std::string name;  // ours
  Shape shape;
  std::vector<HfTensor> tensors;
};

// All parameters of the model.
std::vector<HfParameter> HfParameters(const LlavaConfig& config);

// The canonical name, as transformers 5 writes it:
//   language_model.model.*   from model.language_model.*, language_model.*
//   language_model.lm_head.* from lm_head.*
//   vision_tower.*           from [model.]vision_tower[.vision_model].*
//   multi_modal_projector.*  from [model.]multi_modal_projector.*
std::string CanonicalHfName(absl::string_view name);

// Buffers in older files that are no weights.
bool IsHfBuffer(absl::string_view name);

// The head's canonical name; a file of a tied model may have it nevertheless.
inline constexpr char kHfHead[] = "language_model.lm_head.weight";
inline constexpr char kHfEmbedding[] =
    "language_model.model.embed_tokens.weight";

}  // namespace mimo

#endif  // MIMO_MODELS_HF_NAMES_H_
