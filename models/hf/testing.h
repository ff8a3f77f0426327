// The goldens of tests/golden, unpacked for a test, and their variants.
#ifndef MIMO_MODELS_HF_TESTING_H_
#define MIMO_MODELS_HF_TESTING_H_

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/checkpoint/safetensors.h"
#include "models/hf/names.h"

namespace mimo {

inline constexpr const char* kGoldens[] = {"llava15_tiny", "llava_gqa_tied",
                                           "llava_full_multi"};

// The folder of the golden, as it is in the archive.
inline std::string UnpackGolden(const std::string& name) {
  const std::string command = absl::StrCat("tar xzf tests/golden/", name,
                                           ".tgz -C ", testing::TempDir());
  CHECK_EQ(std::system(command.c_str()), 0) << command;
  return absl::StrCat(testing::TempDir(), "/", name);
}

inline constexpr char kVision[] =
    "modality_submodules.images.encoders.clip_encoder.";
inline constexpr char kProjection[] =
    "modality_submodules.images.input_projections.0.";

inline Allocator& allocator() {
  static Allocator* allocator = new Allocator;
  return *allocator;
}

// The parameters of a model, all NaN.
struct Model {
  explicit Model(const LlavaConfig& config) {
    for (const HfParameter& row : HfParameters(config)) {
      auto parameter = std::make_unique<Parameter>();
      parameter->name = row.name;
      parameter->data = Tensor(allocator(), row.shape, DType::kFloat32);
      parameter->whole = row.shape;
      for (float& x : parameter->data.span<float>()) x = NAN;
      parameter->main_grad = Tensor(allocator(), row.shape, DType::kFloat32);
      list.push_back(parameter.get());
      owned.push_back(std::move(parameter));
    }
  }
  Parameter* Find(const std::string& name) const {
    for (Parameter* p : list) {
      if (p->name == name) return p;
    }
    return nullptr;
  }
  TensorMap Data() const {
    TensorMap data;
    for (const Parameter* p : list) data[p->name] = p->data;
    return data;
  }
  std::vector<Parameter*> list;
  std::vector<std::unique_ptr<Parameter>> owned;
};

inline bool SameBytes(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

inline TensorMap ReadAll(const std::string& file) {
  const auto source = SafeTensors::Open(file);
  CHECK_OK(source.status());
  TensorMap tensors;
  for (const auto& [name, info] : source->tensors()) {
    tensors[name] = *source->Load(name, allocator());
  }
  return tensors;
}

// A copy of a golden with its tensors changed.
inline std::string Variant(const std::string& golden, const std::string& name,
                           const std::function<void(TensorMap&)>& change) {
  const std::string from = UnpackGolden(golden);
  const std::string to = absl::StrCat(testing::TempDir(), "/", golden, name);
  std::filesystem::remove_all(to);
  std::filesystem::create_directories(to);
  std::filesystem::copy_file(from + "/config.json", to + "/config.json");
  TensorMap tensors = ReadAll(from + "/model.safetensors");
  change(tensors);
  CHECK_OK(WriteSafeTensors(to + "/model.safetensors", tensors));
  return to;
}

inline void Rename(
    TensorMap& tensors,
    const std::vector<std::pair<std::string, std::string>>& prefixes) {
  TensorMap renamed;
  for (const auto& [name, tensor] : tensors) {
    std::string to = name;
    for (const auto& [from, prefix] : prefixes) {
      if (absl::StartsWith(name, from)) {
        to = prefix + name.substr(from.size());
        break;
      }
    }
    renamed[to] = tensor;
  }
  tensors = renamed;
}

// Every layout of names that is known, of one golden.
inline std::vector<std::string> Variants(const std::string& golden) {
  auto rename = [&](const std::string& name, auto prefixes) {
    return Variant(golden, name, [&](TensorMap& t) { Rename(t, prefixes); });
  };
  using Prefixes = std::vector<std::pair<std::string, std::string>>;
  const Prefixes older = {{"vision_tower.", "vision_tower.vision_model."}};
  const Prefixes newer = {
      {"language_model.lm_head.", "lm_head."},
      {"language_model.model.", "model.language_model."},
      {"vision_tower.", "model.vision_tower."},
      {"multi_modal_projector.", "model.multi_modal_projector."}};
  Prefixes nested = newer;
  nested[2].second = "model.vision_tower.vision_model.";
  std::vector<std::string> folders = {
      Variant(golden, "_same", [](TensorMap&) {}), rename("_older", older),
      rename("_newer", newer), rename("_nested", nested)};
  folders.push_back(Variant(golden, "_buffers", [](TensorMap& t) {
    t["vision_tower.vision_model.embeddings.position_ids"] =
        Tensor::Zeros(allocator(), {1, 17}, DType::kInt64);
    t["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] =
        Tensor::Zeros(allocator(), {8}, DType::kFloat32);
  }));
  folders.push_back(Variant(golden, "_head", [](TensorMap& t) {
    t.emplace(kHfHead, t.at(kHfEmbedding));  // redundant where it is tied
  }));
  return folders;
}

}  // namespace mimo

#endif  // MIMO_MODELS_HF_TESTING_H_
