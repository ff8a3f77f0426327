// The GPUs here, models for them, and ranks on them.
#ifndef MIMO_TESTS_RANKS_GPUS_H_
#define MIMO_TESTS_RANKS_GPUS_H_

#include <cuda_runtime.h>

#include <string>
#include <vector>

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

// Of one machine. Of more ranks than that, each so many are taken for another
// machine's (NCCL's NCCL_HOSTID): they share the GPUs, and NCCL joins machines
// by sockets.
inline int Gpus() {
  int gpus = 0;
  return cudaGetDeviceCount(&gpus) == cudaSuccess ? gpus : 0;
}

}  // namespace mimo

#endif  // MIMO_TESTS_RANKS_GPUS_H_
