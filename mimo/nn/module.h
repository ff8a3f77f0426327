// Module: a named part of a model that owns parameters and child modules.
//
// A parameter's full name is its path,
// "language_model.layers.0.mlp.fc1.weight", and its initial values depend on
// the seed and that name alone, not on the order of construction or on what
// else the model has, nor on the ranks it is spread over: a rank's part has the
// values of the whole.
#ifndef MIMO_MIMO_NN_MODULE_H_
#define MIMO_MIMO_NN_MODULE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "mimo/nn/parallel_groups.h"
#include "mimo/nn/parameter.h"
#include "mimo/nn/quantization.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

// A rank's part of `size` things. Parts differ by one at most.
Shard PartOf(int64_t size, int ranks, int rank);

// Where a module is being built: its path and what all parameters share.
struct BuildContext {
  Allocator* allocator;
  DType dtype = DType::kFloat32;
  uint64_t seed = 0;
  bool meta = false;  // parameters have shapes only: a model to count, not run
  bool initialize = true;  // false: parameters are about to be loaded
  bool trainable = true;   // false: every parameter is frozen from the start
  Quantization quantization = Quantization::kNone;  // of linear layers
  ParallelGroups parallel = {};
  // Of what is drawn at run time (dropout): the same on a module's tp, cp and
  // dp ranks, another in each stage and module.
  uint64_t rng_seed = 0;
  std::string path;

  BuildContext Child(absl::string_view name) const;
  // This tp rank's part of `size` things.
  Shard PartOf(int64_t size) const {
    return mimo::PartOf(size, parallel.tp_size(), parallel.tp_rank());
  }
};

class Module {
 public:
  explicit Module(BuildContext build) : build_(std::move(build)) {}
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  const std::string& path() const { return build_.path; }
  // Own parameters, then the children's, in the order they were added.
  std::vector<Parameter*> Parameters() const;
  // From here on no parameter of this module gets a gradient.
  void Freeze();
  bool Trainable() const;  // whether any parameter is not frozen

 protected:
  struct Init {
    double mean = 0, std = 0;  // normal; std 0: constant
  };
  // `whole`: the shape on one rank. No shards: every tp rank has all of it.
  Parameter& AddParameter(absl::string_view name, Shape whole, Init init,
                          Sharding sharding = {});

  // Builds M(build.Child(name), args...).
  template <typename M, typename... Args>
  M& AddChild(absl::string_view name, Args&&... args) {
    auto child =
        std::make_unique<M>(build_.Child(name), std::forward<Args>(args)...);
    M& reference = *child;
    children_.push_back(std::move(child));
    return reference;
  }
  void AdoptChild(std::unique_ptr<Module> child) {
    children_.push_back(std::move(child));
  }
  const BuildContext& build() const { return build_; }

 private:
  void Collect(std::vector<Parameter*>& out) const;

  BuildContext build_;
  std::vector<std::unique_ptr<Parameter>> parameters_;
  std::vector<std::unique_ptr<Module>> children_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_NN_MODULE_H_
