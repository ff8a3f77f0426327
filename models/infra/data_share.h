// What a rank reads, by its place in the modules.
#ifndef MIMO_MODELS_INFRA_DATA_SHARE_H_
#define MIMO_MODELS_INFRA_DATA_SHARE_H_

#include <cstdint>
#include <map>
#include <string>

#include "mimo/data/batch.h"
#include "models/infra/mimo_infra.h"

namespace mimo {

// Which part of each global micro-batch a module of this rank has: the language
// model one for each replica, an encoder, whose cp ranks have items of their
// own as its replicas do, one of DP x CP.
DataSlice SliceOfModule(const MimoInfra& infra, const std::string& module);

// Of each global micro-batch, of micro_batch_size samples a replica of the
// language model: on the language model's ranks its replica's text, and where
// an encoder begins the items of its slice. Tokens are counted
// unless all modules are the same and have no CP or PP. The parallelism has
// passed MicroBatches.
DataShare DataShareOf(const MimoInfra& infra, int64_t micro_batch_size,
                      const std::map<std::string, int64_t>& special_token_ids);

}  // namespace mimo

#endif  // MIMO_MODELS_INFRA_DATA_SHARE_H_
