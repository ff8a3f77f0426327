// The GPUs here, and models for them.
#ifndef MIMO_TESTS_RANKS_GPUS_H_
#define MIMO_TESTS_RANKS_GPUS_H_

#include <string>
#include <vector>

#include "comm/testing/gpus.h"

namespace mimo {

// Sizes that GPUs multiply well.
inline const std::vector<std::string> kOnGpu = {
    "model.language.hidden_size=64",
    "model.language.ffn_hidden_size=128",
    "model.language.vocab_size=512",
    "model.vision.hidden_size=64",
    "model.vision.ffn_hidden_size=128",
    "train.device=cuda",
    "data.cache_images=true"};

}  // namespace mimo

#endif  // MIMO_TESTS_RANKS_GPUS_H_
