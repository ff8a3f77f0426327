#include "bench/step_flops.h"

#include <map>
#include <string>

namespace mimo {
namespace {

bool Frozen(const std::map<std::string, bool>& of) {
  const auto found = of.find("images");
  return found != of.end() && found->second;
}

// A product of `weights` weights with `rows` rows.
double Product(double weights, double rows, bool learns, bool before_learns) {
  return 2 * weights * rows * (1 + learns + before_learns);
}

// Scores and weighted values of S x S pairs, of `width` = heads * head size.
double Attention(double samples, double seq, double width, bool backward) {
  return 4 * samples * seq * seq * width * (backward ? 3 : 1);
}

}  // namespace

double StepFlops(const LlavaConfig& config, const StepSize& size) {
  const ClipVitConfig& vit = config.vision;
  const GptConfig& lm = config.language;
  const bool vit_learns = !Frozen(config.freeze_modality_encoders);
  const bool projector_learns = !Frozen(config.freeze_modality_projections);
  const bool lm_learns = !config.freeze_language_model;
  const bool before_lm = vit_learns || projector_learns;

  const double hv = vit.hidden_size;
  const double patches = size.batch * vit.patches();
  const double vit_rows = patches + size.batch;  // and the class token
  const double vit_layer = 4 * hv * hv + 2 * hv * vit.ffn_hidden_size;
  double flops =
      Product(hv * vit.num_channels * vit.patch_size * vit.patch_size, patches,
              vit_learns, false) +
      vit.layers_used() *
          (Product(vit_layer, vit_rows, vit_learns, vit_learns) +
           Attention(size.batch, vit.patches() + 1, hv, vit_learns));

  const double rows = size.batch * vit.features();
  const double h = lm.hidden_size;
  const ProjectorConfig& projector = config.projector;
  if (projector.type == ProjectorType::kAffine) {
    flops += Product(hv * h, rows, projector_learns, vit_learns);
  } else {
    const double middle =
        projector.ffn_hidden_size > 0 ? projector.ffn_hidden_size : h;
    flops += Product(hv * middle, rows, projector_learns, vit_learns) +
             Product(middle * h, rows, projector_learns, before_lm);
  }

  // The token embedding learns with the language model: it comes before layer
  // 0, too.
  const bool before = before_lm || lm_learns;
  const double width = lm.num_attention_heads * lm.head_dim();
  const double layer = 2 * h * width + 2 * h * lm.groups() * lm.head_dim() +
                       3 * h * lm.ffn_hidden_size;
  flops += lm.num_layers *
           (Product(layer, size.batch * size.seq, lm_learns, before) +
            Attention(size.batch, size.seq, width, before) / 2);
  return flops + Product(h * lm.vocab_size, size.batch * size.labelled,
                         lm_learns, before);
}

}  // namespace mimo
