// LlavaConfig: the `model:` section of a LLaVA run.
#ifndef MIMO_MODELS_LLAVA_CONFIG_H_
#define MIMO_MODELS_LLAVA_CONFIG_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "mimo/nn/quantization.h"
#include "models/clip/config.h"
#include "models/gpt/config.h"
#include "models/projector/config.h"

namespace mimo {

struct LlavaConfig {
  GptConfig language;
  ClipVitConfig vision;
  ProjectorConfig projector;
  std::map<std::string, int64_t> special_token_ids = {{"images", 32000}};
  bool freeze_language_model = false;
  std::map<std::string, bool> freeze_modality_encoders;
  std::map<std::string, bool> freeze_modality_projections;
  std::map<std::string, Quantization> quantization;

  template <typename V>
  void Fields(V& v) {
    v("language", language);
    v("vision", vision);
    v("projector", projector);
    v("special_token_ids", special_token_ids);
    v("freeze_language_model", freeze_language_model);
    v("freeze_modality_encoders", freeze_modality_encoders);
    v("freeze_modality_projections", freeze_modality_projections);
    v("quantization", quantization);
  }
  absl::Status Validate() const;
};

}  // namespace mimo

#endif  // MIMO_MODELS_LLAVA_CONFIG_H_
