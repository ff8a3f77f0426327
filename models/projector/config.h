// ProjectorConfig: from a modality encoder's features to the language model.
// Source: LLaVA-1.5's "mlp2x_gelu", arXiv:2310.03744.
#ifndef MIMO_MODELS_PROJECTOR_CONFIG_H_
#define MIMO_MODELS_PROJECTOR_CONFIG_H_

#include <array>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/activation/bias_activation.h"
#include "mimo/config/fields.h"
#include "models/clip/config.h"

namespace mimo {

enum class ProjectorType {
  kMlp,     // fc2(act(fc1(x)))
  kAffine,  // fc1(x)
};
template <>
struct EnumNames<ProjectorType> {
  static constexpr std::array<std::pair<ProjectorType, absl::string_view>, 2>
      kNames = {
          {{ProjectorType::kMlp, "mlp"}, {ProjectorType::kAffine, "affine"}}};
};

struct ProjectorConfig {
  ProjectorType type = ProjectorType::kMlp;
  int64_t input_size = 0;       // 0: the encoder's hidden size
  int64_t ffn_hidden_size = 0;  // 0: output_size
  int64_t output_size = 0;      // 0: the language model's hidden size
  Activation activation = Activation::kGelu;
  bool bias = true;
  double init_std = 0.02;

  template <typename V>
  void Fields(V& v) {
    v("type", type);
    v("input_size", input_size);
    v("ffn_hidden_size", ffn_hidden_size);
    v("output_size", output_size);
    v("activation", activation);
    v("bias", bias);
    v("init_std", init_std);
  }
  absl::Status Validate() const;
  absl::Status CheckTensorParallel(int tp) const;
};

}  // namespace mimo

#endif  // MIMO_MODELS_PROJECTOR_CONFIG_H_
