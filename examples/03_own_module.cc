// An encoder of one's own, added to the registry under a name of its own, with
// a typed config that reads from YAML: nothing in models/ changes. The same
// registry, given to MimoMain, makes a `mimo` command that trains it.
//
//   bazel run //examples:03_own_module
//   bazel run //examples:03_own_module -- train --config my.yaml
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "cli/mimo_main.h"
#include "cli/working_directory.h"
#include "mimo/config/config_node.h"
#include "models/llava/llava.h"
#include "models/mimo_model/mimo_model.h"
#include "models/mimo_model/mimo_stage.h"

// A sensor's readings [items, channels]: one token each.
struct SensorConfig {
  int64_t channels = 6;
  int64_t hidden_size = 32;
  template <typename V>
  void Fields(V& v) {
    v("channels", channels);
    v("hidden_size", hidden_size);
  }
};

class SensorEncoder : public mimo::ModalityEncoder {
 public:
  SensorEncoder(mimo::BuildContext build, const SensorConfig& config)
      : ModalityEncoder(std::move(build)),
        config_(config),
        linear_(AddChild<mimo::LinearLayer>("linear", config.channels,
                                            config.hidden_size, true, 0.02)) {}
  int64_t output_size() const override { return config_.hidden_size; }
  absl::StatusOr<mimo::Var> Forward(const mimo::Context& ctx,
                                    const mimo::Tensor& input) const override {
    if (input.rank() != 2 || input.dim(1) != config_.channels) {
      return absl::InvalidArgumentError(
          path() + ": readings " + mimo::ToString(input.shape()) +
          ", wanted [items, " + std::to_string(config_.channels) + "]");
    }
    return linear_.Forward(ctx, mimo::Var{input}, mimo::Activation::kGelu);
  }

 private:
  SensorConfig config_;
  mimo::LinearLayer& linear_;
};

constexpr char kModel[] = R"(
type: mimo
language: {module: gpt, num_layers: 1, hidden_size: 32, ffn_hidden_size: 64,
           num_attention_heads: 4, vocab_size: 16, max_sequence_length: 32}
modalities:
  sensor:
    encoders: {rig: {module: sensor, channels: 6}}
special_token_ids: {sensor: 15}
)";

int main(int argc, char** argv) {
  mimo::ModuleRegistry registry = mimo::BuiltinModules();
  registry.Add<SensorConfig, SensorEncoder>("sensor");
  if (argc > 1) {
    mimo::EnterUsersFolder();
    return mimo::MimoMain({argv + 1, argv + argc}, registry);
  }

  const auto node = mimo::ParseYaml(kModel, "model");
  const auto config = mimo::ReadModelConfig(*node, registry);
  if (!config.ok()) {
    std::printf("%s\n", config.status().ToString().c_str());
    return 1;
  }
  mimo::Allocator allocator;
  const auto model = mimo::MimoModel::Build(
      *config, registry, {.allocator = &allocator, .seed = 1});
  if (!model.ok()) {
    std::printf("%s\n", model.status().ToString().c_str());
    return 1;
  }
  for (const mimo::Parameter* p : (*model)->Parameters()) {
    std::printf("%-60s %s\n", p->name.c_str(),
                mimo::ToString(p->data.shape()).c_str());
  }
  mimo::Sample sample;
  sample.input_ids = {1, 15, 15, 7};  // two readings, then a word to learn
  sample.labels = {-100, -100, -100, 7};
  sample.modalities["sensor"] = {{{6}, {1, 2, 3, 4, 5, 6}},
                                 {{6}, {6, 5, 4, 3, 2, 1}}};
  mimo::MimoStage stage(**model, allocator);
  const auto loss = stage.ForwardBackward({mimo::Collate({sample}, 0)}, 1);
  std::printf("loss %.4f\n", loss.ok() ? *loss : -1);
  return loss.ok() ? 0 : 1;
}
