// What a rank reads, by its place in the modules.
#ifndef MIMO_MODELS_INFRA_DATA_SHARE_H_
#define MIMO_MODELS_INFRA_DATA_SHARE_H_

#include <cstdint>
#include <string>

#include "mimo/data/batch.h"
#include "models/infra/mimo_infra.h"

namespace mimo {

// Which part of each global micro-batch a module of this rank has: the language
// model one for each replica, an encoder, whose cp ranks have items of their
// own as its replicas do, one of DP x CP.
DataSlice SliceOfModule(const MimoInfra& infra, const std::string& module);

// Of each global micro-batch, of micro_batch_size samples a replica of the
// language model: on the language model's ranks their replica's text, and where
// an encoder begins the items of its slice; no rank reads text or items of
// others. The stages between first and last read the text too: what passes
// through them has its samples' lengths, which only the tokens tell. CP ranks
// read whole samples, as every one has tokens from both halves of each.
// The parallelism has passed MicroBatches.
DataShare DataShareOf(const MimoInfra& infra, int64_t micro_batch_size);

}  // namespace mimo

#endif  // MIMO_MODELS_INFRA_DATA_SHARE_H_
