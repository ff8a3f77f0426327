#include "models/plan/module_memory.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "comm/base/planned_communicator.h"
#include "kernels/base/status_macros.h"
#include "models/clip/config.h"
#include "models/gpt/config.h"
#include "models/projector/config.h"
#include "models/transformer/layer.h"
#include "models/transformer/recompute.h"

namespace mimo {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The transformer layers of a built-in type.
struct Stack {
  LayerSizes sizes;
  int64_t layers, layers_run;
  Recompute recompute;
  int64_t recomputed;  // of the first so many layers
  int64_t tokens;      // of a sample
};

std::optional<Stack> StackOf(const ModuleSpec& spec) {
  if (const auto* gpt = spec.config.As<GptConfig>()) {
    return Stack{{gpt->hidden_size, gpt->ffn_hidden_size,
                  gpt->num_attention_heads, gpt->groups(), gpt->head_dim(),
                  /*gated=*/true},
                 gpt->num_layers,
                 gpt->num_layers,
                 gpt->recompute,
                 gpt->recompute_layers.value_or(gpt->num_layers),
                 gpt->max_sequence_length};
  }
  if (const auto* vit = spec.config.As<ClipVitConfig>()) {
    const int64_t heads = vit->num_attention_heads;
    return Stack{{vit->hidden_size, vit->ffn_hidden_size, heads, heads,
                  vit->hidden_size / heads, /*gated=*/false},
                 vit->num_layers,
                 vit->layers_used(),
                 vit->recompute,
                 vit->recompute_layers.value_or(vit->num_layers),
                 1 + vit->patches()};
  }
  return std::nullopt;
}

// `replicas` share its optimizer state.
RankMemory MemoryOf(const Parameter& parameter, DType exp_avg_dtype,
                    int64_t replicas, Device device) {
  RankMemory memory;
  const int64_t count = parameter.data.numel();
  const DType dtype = parameter.data.dtype();
  // A frozen matrix in 8 bits, and once more transposed: on a GPU alone.
  const bool codes =
      parameter.frozen && parameter.quantization != Quantization::kNone;
  if (codes) memory.weights += 2 * count;
  if (!codes || device == Device::kCpu) memory.weights += count * SizeOf(dtype);
  if (parameter.frozen) return memory;
  const int64_t accumulator = SizeOf(AccumulatorOf(dtype));
  const int64_t exp_avg =
      exp_avg_dtype == DType::kFloat32 ? accumulator : SizeOf(exp_avg_dtype);
  memory.gradients = count * accumulator;
  memory.optimizer =
      CeilDiv(count, replicas) *
      (exp_avg + accumulator + (dtype == DType::kBFloat16 ? 2 : 0));
  return memory;
}

class StageCounter {
 public:
  explicit StageCounter(const ModuleLoad& load)
      : load_(load),
        pp_(load.parallelism.pipeline_model_parallel_size),
        tp_(load.parallelism.tensor_model_parallel_size),
        cp_(load.parallelism.context_parallel_size),
        replicas_(*load.parallelism.data_parallel_size * cp_),
        size_(SizeOf(load.dtype)),
        stages_(pp_) {}

  void AddParameter(int stage, const Parameter& parameter) {
    stages_[stage] +=
        MemoryOf(parameter, load_.exp_avg_dtype, replicas_, Device::kCuda);
  }

  void AddLayers(const Stack& stack, bool frozen) {
    for (int64_t i = 0; i < stack.layers_run; ++i) {
      KeptElements kept = KeptByLayer(
          stack.sizes, i < stack.recomputed ? stack.recompute : Recompute::kOff,
          frozen);
      if (load_.parallelism.sequence_parallel)
        kept = {.whole = 0, .split = kept.whole + kept.split};
      AddActivations(StageOfLayer(i, stack.layers, pp_), stack.tokens, kept);
    }
  }

  void AddActivations(int stage, int64_t tokens_of_sample, KeptElements kept) {
    const int64_t tokens =
        CeilDiv(load_.micro_batch_size * tokens_of_sample, cp_);
    stages_[stage].activations +=
        tokens * size_ * (kept.whole + CeilDiv(kept.split, tp_));
  }

  int last_stage() const { return pp_ - 1; }
  std::vector<RankMemory> stages() && { return std::move(stages_); }

 private:
  const ModuleLoad& load_;
  const int64_t pp_, tp_, cp_, replicas_, size_;
  std::vector<RankMemory> stages_;
};

// Tokens of a sample that `encoder` makes.
int64_t FeaturesOf(const ModuleSpec& encoder) {
  const auto* vit = encoder.config.As<ClipVitConfig>();
  return vit == nullptr ? 0 : vit->features();
}

}  // namespace

int64_t AheadMemory(const ModuleLoad& load, const MimoModel& model, int stage) {
  if (load.modality.empty()) return 0;
  const ModalitySubmodule& modality = model.modality(load.modality);
  if (modality.EncodersTrainable()) return 0;
  const bool last = stage + 1 == load.parallelism.pipeline_model_parallel_size;
  int64_t elements = 0;  // of a sample
  for (const auto& [name, encoder] :
       model.config().modality_submodules_spec.at(load.modality).encoders) {
    const auto* vit = encoder.config.As<ClipVitConfig>();
    if (vit == nullptr) continue;
    const bool projected = last && !modality.Trainable();
    elements += (last ? vit->features() : 1 + vit->patches()) *
                (projected ? modality.output_size() : vit->hidden_size);
  }
  return CeilDiv(load.micro_batch_size * elements,
                 load.parallelism.context_parallel_size) *
         SizeOf(load.dtype);
}

RankMemory& RankMemory::operator+=(const RankMemory& other) {
  weights += other.weights;
  gradients += other.gradients;
  optimizer += other.optimizer;
  activations += other.activations;
  return *this;
}

RankMemory StateMemory(const MimoModel& model, DType exp_avg_dtype,
                       Device device) {
  RankMemory memory;
  const auto& infra = model.placement().infra;
  for (const auto& [name, stage] : model.role().modules) {
    const int64_t replicas =
        infra == nullptr ? 1 : infra->pg_collections.at(name)->dp_cp->size();
    for (const Parameter* p : model.module(name).Parameters())
      memory += MemoryOf(*p, exp_avg_dtype, replicas, device);
  }
  return memory;
}

std::string PartOf(const std::string& parameter) {
  std::vector<std::string> names = absl::StrSplit(parameter, '.');
  const size_t depth = names[0] == "modality_submodules" ? 4 : 1;
  names.resize(std::min(names.size(), depth));
  return absl::StrJoin(names, ".");
}

absl::StatusOr<std::vector<RankMemory>> ModuleMemory(
    const ModuleLoad& load, const MimoModel& model,
    const ModuleRegistry& registry) {
  const MimoModelConfig& config = model.config();
  std::map<std::string, bool> trained;  // by parameter and by part
  for (const Parameter* p : model.Parameters()) {
    trained[p->name] = !p->frozen;
    trained[PartOf(p->name)] |= !p->frozen;
  }
  // The rank with the largest parts; parts differ by one at most.
  const int tp_size = load.parallelism.tensor_model_parallel_size;
  PlannedCommunicator tp(tp_size - 1, tp_size);
  Allocator allocator;
  const bool language = load.modality.empty();
  StageCounter counter(load);
  for (int stage = 0; stage <= counter.last_stage(); ++stage) {
    PlannedCommunicator pp(stage, counter.last_stage() + 1);
    const BuildContext build = {
        .allocator = &allocator,
        .dtype = load.dtype,
        .meta = true,
        .quantization = config.QuantizationOf(load.modality),
        .parallel = {.tp = &tp, .pp = &pp}};
    std::unique_ptr<Module> module;
    if (language) {
      MIMO_ASSIGN_OR_RETURN(
          module, registry.Build<LanguageModel>(config.language_model_spec,
                                                build.Child("language_model")));
    } else {
      MIMO_ASSIGN_OR_RETURN(
          module,
          ModalitySubmodule::Build(
              config.modality_submodules_spec.at(load.modality), registry,
              build.Child("modality_submodules." + load.modality)));
    }
    for (Parameter* p : module->Parameters()) {
      p->frozen = !trained.at(p->name);
      counter.AddParameter(stage, *p);
    }
  }

  if (language) {
    const ModuleSpec& spec = config.language_model_spec;
    if (const auto stack = StackOf(spec)) {
      counter.AddLayers(*stack, !trained["language_model"]);
    }
    return std::move(counter).stages();
  }
  const ModalitySpec& spec = config.modality_submodules_spec.at(load.modality);
  const std::string path = "modality_submodules." + load.modality;
  int64_t features = 0;  // of all encoders together
  for (const auto& [name, encoder] : spec.encoders) {
    features += FeaturesOf(encoder);
    const auto stack = StackOf(encoder);
    if (stack && trained[absl::StrCat(path, ".encoders.", name)]) {
      counter.AddLayers(*stack, /*frozen=*/false);
    }
  }
  // One for all encoders, or one for each.
  const size_t projections = spec.input_projections.size();
  for (size_t i = 0; i < projections; ++i) {
    const auto* sizes = spec.input_projections[i].config.As<ProjectorConfig>();
    const std::string name = absl::StrCat(path, ".input_projections.", i);
    if (sizes == nullptr || !trained[name]) continue;
    const int64_t hidden = sizes->type == ProjectorType::kAffine ? 0
                           : sizes->ffn_hidden_size > 0 ? sizes->ffn_hidden_size
                                                        : sizes->output_size;
    counter.AddActivations(
        counter.last_stage(),
        projections == 1 ? features : FeaturesOf(spec.encoders[i].second),
        {sizes->input_size, 2 * hidden});
  }
  return std::move(counter).stages();
}

}  // namespace mimo
