// What a rank reads, by its place in the modules.
#ifndef MIMO_MODELS_INFRA_DATA_SHARE_H_
#define MIMO_MODELS_INFRA_DATA_SHARE_H_

#include <cstdint>
#include <map>
#include <string>

#include "mimo/data/batch.h"
#include "models/infra/mimo_infra.h"

namespace mimo {

// Of each global micro-batch, of micro_batch_size samples a replica of the
// language model: on the language model's ranks its replica's text, and where
// an encoder begins the items of its lane, one of DP x CP. Tokens are counted
// unless all modules are the same and have no CP or PP. The parallelism has
// passed MicroBatches.
DataShare DataShareOf(const MimoInfra& infra, int64_t micro_batch_size,
                      const std::map<std::string, int64_t>& special_token_ids);

}  // namespace mimo

#endif  // MIMO_MODELS_INFRA_DATA_SHARE_H_
