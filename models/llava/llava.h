// LLaVA: CLIP ViT -> projector -> Llama, as specs.
// Source: Liu et al. 2023, arXiv:2304.08485 and arXiv:2310.03744.
#ifndef MIMO_MODELS_LLAVA_LLAVA_H_
#define MIMO_MODELS_LLAVA_LLAVA_H_

#include "models/llava/config.h"
#include "models/spec/module_spec.h"

namespace mimo {

// Modality and encoder names of a LLaVA model.
inline constexpr char kImages[] = "images";
inline constexpr char kClipEncoder[] = "clip_encoder";

// gpt, clip_vit and projector, under those names.
ModuleRegistry BuiltinModules();

// The specs of a LLaVA model, with CLIP or with another encoder in its place;
// projector sizes left at 0 are those of config.vision and config.language.
MimoModelConfig LlavaModelConfig(const LlavaConfig& config);
MimoModelConfig LlavaModelConfig(const LlavaConfig& config,
                                 ModuleSpec vision_encoder);

}  // namespace mimo

#endif  // MIMO_MODELS_LLAVA_LLAVA_H_
