// Bytes that a rank needs of one module in training, by formula.
//
// P, the rank's parameters: those that the module builds for its pipeline stage
// and tensor-parallel part.
//
//   weights      P of the run's dtype; 2 bytes more of each that is frozen and
//                multiplied in 8 bits: its codes as they are and transposed
//   gradients    4 bytes of each that is trained
//   optimizer    8 bytes of each that is trained: AdamW's moments, 6 if the
//                first one is bfloat16; 2 more for the rest of a bfloat16
//                weight's float32 master; a DP * CP-th of them
//   activations  T * (whole + split / TP) elements of the run's dtype for each
//                layer of the stage; the elements are those of
//                models/transformer/recompute.h. With sequence parallelism
//                whole / TP
//
// T: tokens of a micro-batch on the rank, samples * S / CP; S is the language
// model's max_sequence_length, which is more than batches have, padded or
// packed, and of an encoder the tokens of one image a sample. A projection
// keeps its input and its hidden layer twice. An encoder without trained
// parameters keeps nothing of a micro-batch under way, and of each for which it
// runs ahead what it gives (AheadMemory). Not counted: the norms' and
// attention's statistics, the embedding's output, the head's logits, buffers of
// a pass, activations of module types of one's own.
#ifndef MIMO_MODELS_PLAN_MODULE_MEMORY_H_
#define MIMO_MODELS_PLAN_MODULE_MEMORY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"
#include "models/mimo_model/mimo_model.h"
#include "models/parallelism/module_parallelism.h"
#include "models/spec/module_spec.h"

namespace mimo {

struct RankMemory {
  int64_t weights = 0, gradients = 0, optimizer = 0, activations = 0;  // bytes

  int64_t Total() const {
    return weights + gradients + optimizer + activations;
  }
  RankMemory& operator+=(const RankMemory& other);
  bool operator==(const RankMemory&) const = default;
};

// "language_model", "modality_submodules.images.encoders.clip_encoder": the
// part of a model that a parameter of this name belongs to.
std::string PartOf(const std::string& parameter);

// What a rank needs of its `model` but activations: the formulas above of the
// parameters that it has, meta or not. On the CPU an 8-bit weight's own values
// stay beside its codes.
RankMemory StateMemory(const MimoModel& model, DType exp_avg_dtype,
                       Device device);

struct ModuleLoad {
  std::string modality;  // "": the language model
  ModuleParallelismConfig parallelism;
  int64_t micro_batch_size;  // samples of a replica
  DType dtype;
  DType exp_avg_dtype;
};

// [PP]: of each rank of a stage, with one micro-batch under way. `model` is
// `config` built whole, for what is frozen. Errors: a module that cannot be
// split over so many ranks or stages.
absl::StatusOr<std::vector<RankMemory>> ModuleMemory(
    const ModuleLoad& load, const MimoModel& model,
    const ModuleRegistry& registry);

// Bytes of what the frozen encoders of a stage of a modality give for one
// micro-batch, their features or, if all is frozen, the projected ones; 0 of
// others.
int64_t AheadMemory(const ModuleLoad& load, const MimoModel& model, int stage);

}  // namespace mimo

#endif  // MIMO_MODELS_PLAN_MODULE_MEMORY_H_
