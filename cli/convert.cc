// mimo convert: a Hugging Face folder into a training checkpoint, and back.
#include "mimo/checkpoint/convert.h"

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/open_model.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/checkpoint/sharded_tensors.h"
#include "mimo/data/file.h"
#include "models/hf/checkpoint.h"
#include "models/hf/llava_config.h"
#include "models/llava/model_section.h"

namespace mimo {
namespace {

// Files of a folder that go along as they are, when they are there.
constexpr const char* kCompanions[] = {"tokenizer.model", "config.json",
                                       "generation_config.json"};

absl::StatusOr<std::optional<DType>> ReadFileDType(const Args& args) {
  if (!args.Has("dtype")) return std::nullopt;
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    if (Name(dtype) == args.String("dtype")) return dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("convert: --dtype: \"", args.String("dtype"),
                   "\", wanted float32, bfloat16 or float16"));
}

absl::Status FromHuggingFace(const std::string& from, const std::string& to,
                             std::optional<DType> dtype) {
  MIMO_ASSIGN_OR_RETURN(const LlavaConfig config, ReadHfLlavaConfig(from));
  Allocator allocator;
  Checkpoint checkpoint;
  MIMO_ASSIGN_OR_RETURN(TensorMap tensors, LoadHfTensors(from, allocator));
  MIMO_ASSIGN_OR_RETURN(HfLayout layout, ReadHfLayout(from));
  if (dtype) {
    for (auto& [name, entry] : layout.entries) entry.dtype = *dtype;
    for (auto& [name, tensor] : tensors) {
      Tensor converted(allocator, tensor.shape(), *dtype);
      MIMO_RETURN_IF_ERROR(ConvertElements(tensor.data(), tensor.dtype(),
                                           converted.data(), *dtype,
                                           tensor.numel()));
      tensor = converted;
    }
  }
  checkpoint.model = Whole(tensors);
  checkpoint.metadata[kHfLayoutKey] = layout.ToText();
  ConfigNode root;
  root.kind = ConfigNode::Kind::kMap;
  ModelSection section;
  section.llava = config;
  root.children.push_back(section.ToNode());
  checkpoint.files["config.yaml"] = ToYaml(root);
  for (const char* name : kCompanions) {
    const std::string path = absl::StrCat(from, "/", name);
    // Its dtype would be another's.
    if (!Exists(path) || (dtype && name == std::string("config.json")))
      continue;
    MIMO_ASSIGN_OR_RETURN(checkpoint.files[name], ReadFile(path));
  }
  return SaveCheckpoint(to, checkpoint);
}

absl::Status ToHuggingFace(const std::string& from, const std::string& to,
                           std::optional<DType> dtype,
                           const ModuleRegistry& registry) {
  MIMO_ASSIGN_OR_RETURN(const std::string folder, FindCheckpoint(from));
  MIMO_ASSIGN_OR_RETURN(const ConfigNode root,
                        LoadYaml(folder + "/config.yaml"));
  MIMO_ASSIGN_OR_RETURN(const ModelSection section,
                        ReadModelSection(root["model"], registry));
  if (!section.llava) {
    return absl::InvalidArgumentError(absl::StrCat(
        folder, ": model.type: mimo, wanted llava (Hugging Face knows it)"));
  }
  MIMO_ASSIGN_OR_RETURN(const ShardedTensors weights,
                        ShardedTensors::Open(folder, "model"));
  HfSaveOptions options;
  options.dtype = dtype;
  const auto layout = weights.metadata().find(kHfLayoutKey);
  if (layout != weights.metadata().end()) {
    MIMO_ASSIGN_OR_RETURN(options.layout, HfLayout::FromText(layout->second));
  }
  Allocator allocator;
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, shape] : weights.shapes()) {
    MIMO_ASSIGN_OR_RETURN(tensors[name], weights.Load(name, allocator));
  }
  if (Exists(folder + "/config.json") && !dtype) {
    MIMO_ASSIGN_OR_RETURN(options.config_json,
                          ReadFile(folder + "/config.json"));
  }
  MIMO_RETURN_IF_ERROR(SaveHfCheckpoint(to, *section.llava, tensors, options));
  for (const char* name : kCompanions) {
    const std::string path = absl::StrCat(folder, "/", name);
    const std::string copy = absl::StrCat(to, "/", name);
    if (!Exists(path) || Exists(copy)) continue;
    MIMO_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
    MIMO_RETURN_IF_ERROR(WriteFile(copy, bytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunConvert(const Words& words, const ModuleRegistry& registry) {
  Args args("convert",
            "a Hugging Face folder into a training checkpoint, or back");
  args.Flag("from", "DIR", "a Hugging Face folder or a checkpoint");
  args.Flag("to", "DIR", "where the other one goes");
  args.Flag("dtype", "D", "float32, bfloat16, float16 (as it is)");
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.PrintsHelp()) return absl::OkStatus();
  MIMO_ASSIGN_OR_RETURN(const std::string from, args.Required("from"));
  MIMO_ASSIGN_OR_RETURN(const std::string to, args.Required("to"));
  MIMO_ASSIGN_OR_RETURN(const auto dtype, ReadFileDType(args));
  if (Exists(to + "/latest") && !IsHuggingFaceFolder(from)) {
    return absl::InvalidArgumentError(
        absl::StrCat("convert: --to: ", to,
                     " holds training checkpoints, wanted another "
                     "folder"));
  }
  if (IsHuggingFaceFolder(from)) {
    return FromHuggingFace(from, to, dtype);
  }
  return ToHuggingFace(from, to, dtype, registry);
}

}  // namespace mimo
