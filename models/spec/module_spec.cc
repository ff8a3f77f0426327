#include "models/spec/module_spec.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"

namespace mimo {

absl::StatusOr<const ModuleRegistry::Type*> ModuleRegistry::Find(
    absl::string_view type) const {
  const auto found = types_.find(type);
  if (found != types_.end()) return &found->second;
  return absl::InvalidArgumentError(absl::StrCat(
      "module: \"", type, "\", wanted one of ",
      absl::StrJoin(types_, ", ", [](std::string* out, const auto& entry) {
        absl::StrAppend(out, entry.first);
      })));
}

absl::StatusOr<ModuleSpec> ModuleRegistry::Default(
    absl::string_view type) const {
  MIMO_ASSIGN_OR_RETURN(const Type* found, Find(type));
  ModuleSpec spec;
  spec.type = std::string(type);
  spec.config = found->defaults;
  return spec;
}

absl::StatusOr<std::unique_ptr<Module>> ModuleRegistry::BuildModule(
    const ModuleSpec& spec, const BuildContext& build) const {
  auto type = Find(spec.type);
  if (!type.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(build.path, ": ", type.status().message()));
  }
  if (absl::Status valid = spec.config.Validate(build.parallel.tp_size(),
                                                build.parallel.pp_size());
      !valid.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(build.path, ": ", valid.message()));
  }
  std::unique_ptr<Module> module = (*type)->build(build, spec.config);
  if (module == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        build.path, ": the config is not one of type ", spec.type));
  }
  for (const Parameter* p : module->Parameters()) {
    if (p->quantization == Quantization::kNone) continue;
    if (p->data.dim(0) % 16 == 0 && p->data.dim(1) % 16 == 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(p->name, ": ", ToString(p->data.shape()), " on a rank, ",
                     "wanted multiples of 16 with quantization fp8"));
  }
  return module;
}

}  // namespace mimo
