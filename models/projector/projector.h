// MultimodalProjector: features of a modality encoder into the language model.
#ifndef MIMO_MODELS_PROJECTOR_PROJECTOR_H_
#define MIMO_MODELS_PROJECTOR_PROJECTOR_H_

#include "models/projector/config.h"
#include "models/spec/interfaces.h"

namespace mimo {

// Of tp ranks, all have the same features and get the same rows, also with
// sequence parallelism: encoder and language model may be on other ranks.
class MultimodalProjector : public Projection {
 public:
  MultimodalProjector(BuildContext build, const ProjectorConfig& config);
  int64_t input_size() const override { return config_.input_size; }
  int64_t output_size() const override { return config_.output_size; }
  Var Forward(const Context& ctx, const Var& features) const override;

 private:
  ProjectorConfig config_;
  LinearLayer& fc1_;  // [F, in], or [out, in] when affine
  LinearLayer* fc2_;  // [out, F]; null when affine
};

}  // namespace mimo

#endif  // MIMO_MODELS_PROJECTOR_PROJECTOR_H_
