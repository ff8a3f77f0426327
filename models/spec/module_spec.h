// ModuleSpec: what a module is, as data: a registered type name and that type's
// typed config. Copies are deep; specs compare, print, and go to YAML and back.
//
//   ModuleSpec spec("clip_vit", ClipVitConfig{.num_layers = 2});
//   ClipVitConfig* config = spec.config.As<ClipVitConfig>();
//
// ModuleRegistry: how types become modules. A user adds a type of their own
// without touching this folder:
//
//   registry.Add<MyConfig, MyEncoder>("my_encoder");
//
// where MyEncoder derives from LanguageModel, ModalityEncoder or Projection, is
// built by MyEncoder(BuildContext, const MyConfig&), and MyConfig lists its
// Fields (mimo/config/fields.h), and may Validate() itself and say whether so
// many ranks can share the module's layers, CheckTensorParallel(tp), or its
// stages, CheckPipeline(pp); without the latter it has one stage.
#ifndef MIMO_MODELS_SPEC_MODULE_SPEC_H_
#define MIMO_MODELS_SPEC_MODULE_SPEC_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/base/status_macros.h"
#include "mimo/config/fields.h"
#include "mimo/nn/module.h"
#include "models/spec/interfaces.h"

namespace mimo {

// A config struct of any type, held by value.
class AnyConfig {
 public:
  AnyConfig() = default;
  template <typename Config>
  explicit AnyConfig(Config config)
      : held_(std::make_unique<Held<Config>>(std::move(config))) {}
  AnyConfig(const AnyConfig& other)
      : held_(other.held_ ? other.held_->Clone() : nullptr) {}
  AnyConfig(AnyConfig&&) = default;
  AnyConfig& operator=(AnyConfig other) {
    held_ = std::move(other.held_);
    return *this;
  }

  // The config, or null when it is of another type.
  template <typename Config>
  Config* As() {
    auto* held = dynamic_cast<Held<Config>*>(held_.get());
    return held ? &held->config : nullptr;
  }
  template <typename Config>
  const Config* As() const {
    return const_cast<AnyConfig*>(this)->As<Config>();
  }

  // As FromYaml; keys left out keep their values.
  absl::Status Read(const ConfigNode& node,
                    absl::Span<const absl::string_view> other_keys) {
    return held_->Read(node, other_keys);
  }
  // What Validate() says, and whether tp * pp ranks can share the module.
  absl::Status Validate(int tp, int pp) const {
    return held_->Validate(tp, pp);
  }
  ConfigNode ToNode() const { return held_ ? held_->ToNode() : ConfigNode(); }
  bool operator==(const AnyConfig& other) const {
    return ToYaml(ToNode()) == ToYaml(other.ToNode());
  }

 private:
  struct Base {
    virtual ~Base() = default;
    virtual std::unique_ptr<Base> Clone() const = 0;
    virtual absl::Status Read(const ConfigNode& node,
                              absl::Span<const absl::string_view> other) = 0;
    virtual absl::Status Validate(int tp, int pp) const = 0;
    virtual ConfigNode ToNode() const = 0;
  };
  template <typename Config>
  struct Held final : Base {
    explicit Held(Config c) : config(std::move(c)) {}
    std::unique_ptr<Base> Clone() const override {
      return std::make_unique<Held>(config);
    }
    absl::Status Read(const ConfigNode& node,
                      absl::Span<const absl::string_view> other) override {
      return FromYaml(node, config, other);
    }
    absl::Status Validate(int tp, int pp) const override {
      if constexpr (requires { config.Validate(); })
        MIMO_RETURN_IF_ERROR(config.Validate());
      if constexpr (requires { config.CheckTensorParallel(tp); })
        MIMO_RETURN_IF_ERROR(config.CheckTensorParallel(tp));
      if constexpr (requires { config.CheckPipeline(pp); }) {
        return config.CheckPipeline(pp);
      } else if (pp > 1) {
        return absl::InvalidArgumentError(
            absl::StrCat("pipeline_model_parallel_size: ", pp,
                         ", wanted 1: the module has one stage"));
      }
      return absl::OkStatus();
    }
    ConfigNode ToNode() const override { return mimo::ToNode(config); }
    Config config;
  };
  std::unique_ptr<Base> held_;
};

struct ModuleSpec {
  std::string type;  // a name in the registry
  AnyConfig config;

  ModuleSpec() = default;
  template <typename Config>
  ModuleSpec(std::string type, Config config)
      : type(std::move(type)), config(std::move(config)) {}
  bool operator==(const ModuleSpec& other) const = default;
};

// One modality: encoders side by side, their features joined along the tokens,
// before the projection or, with one for each encoder, behind. Decoders and the
// projection to them are for generating it, which nothing here does yet: they
// are built, frozen.
struct ModalitySpec {
  using Named = std::vector<std::pair<std::string, ModuleSpec>>;  // in order
  Named encoders, decoders;
  std::vector<ModuleSpec> input_projections, output_projections;
  bool operator==(const ModalitySpec& other) const = default;
};

struct MimoModelConfig {
  ModuleSpec language_model_spec;
  std::map<std::string, ModalitySpec> modality_submodules_spec;
  std::map<std::string, int64_t> special_token_ids;  // modality -> token
  bool freeze_language_model = false;
  std::map<std::string, bool> freeze_modality_encoders;
  std::map<std::string, bool> freeze_modality_projections;
  // `language` or a modality, with its encoders and projections.
  std::map<std::string, Quantization> quantization;
  // Of a modality; of the language model if that is "".
  Quantization QuantizationOf(const std::string& modality) const {
    const auto at = quantization.find(modality.empty() ? "language" : modality);
    return at == quantization.end() ? Quantization::kNone : at->second;
  }
  bool operator==(const MimoModelConfig& other) const = default;
};

class ModuleRegistry {
 public:
  template <typename Config, typename M>
  void Add(std::string type) {
    types_[std::move(type)] = {
        AnyConfig(Config{}),
        [](BuildContext build,
           const AnyConfig& config) -> std::unique_ptr<Module> {
          const Config* typed = config.As<Config>();
          if (typed == nullptr) return nullptr;
          return std::make_unique<M>(std::move(build), *typed);
        }};
  }

  // A spec of `type` with its default config; an error lists the known types.
  absl::StatusOr<ModuleSpec> Default(absl::string_view type) const;

  // Builds `spec` as an Interface at build.path. Errors: unknown type, a config
  // of another type, a config that is not valid, a module of another kind.
  template <typename Interface>
  absl::StatusOr<std::unique_ptr<Interface>> Build(
      const ModuleSpec& spec, const BuildContext& build) const {
    auto module = BuildModule(spec, build);
    if (!module.ok()) return module.status();
    auto* typed = dynamic_cast<Interface*>(module->get());
    if (typed == nullptr) {
      return absl::InvalidArgumentError(
          build.path + ": module type " + spec.type +
          " cannot stand here, wanted a " + KindOf<Interface>());
    }
    module->release();
    return std::unique_ptr<Interface>(typed);
  }

 private:
  struct Type {
    AnyConfig defaults;
    std::function<std::unique_ptr<Module>(BuildContext, const AnyConfig&)>
        build;
  };
  template <typename Interface>
  static std::string KindOf() {
    if constexpr (std::is_same_v<Interface, LanguageModel>) {
      return "language model";
    } else if constexpr (std::is_same_v<Interface, ModalityEncoder>) {
      return "modality encoder";
    } else {
      return "projection";
    }
  }
  absl::StatusOr<const Type*> Find(absl::string_view type) const;
  absl::StatusOr<std::unique_ptr<Module>> BuildModule(
      const ModuleSpec& spec, const BuildContext& build) const;

  std::map<std::string, Type, std::less<>> types_;
};

// YAML of a whole model:
//   language: {module: gpt, ...}
//   modalities:
//     images:
//       encoders: {clip_encoder: {module: clip_vit, ...}}
//       input_projections: [{module: projector, type: mlp, ...}]
//       decoders, output_projections: likewise
//   special_token_ids: {images: 32000}
//   freeze_language_model, freeze_modality_encoders,
//   freeze_modality_projections, quantization
absl::StatusOr<MimoModelConfig> ReadModelConfig(const ConfigNode& node,
                                                const ModuleRegistry& registry);
ConfigNode ToNode(const MimoModelConfig& config);

}  // namespace mimo

#endif  // MIMO_MODELS_SPEC_MODULE_SPEC_H_
