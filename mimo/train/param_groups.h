// ParamGroupsOf: a rank's shards by the rates that their modules have.
#ifndef MIMO_MIMO_TRAIN_PARAM_GROUPS_H_
#define MIMO_MIMO_TRAIN_PARAM_GROUPS_H_

#include <map>
#include <string>
#include <vector>

#include "mimo/optim/adamw.h"
#include "mimo/optim/optimizer_config.h"
#include "mimo/parallel/distributed_data_parallel.h"

namespace mimo {

// `rates` are OptimizerConfig's: of a module, and in its place of a part of it,
// "images.encoders": the parameters with ".images.encoders." in their names.
std::vector<ParamGroup> ParamGroupsOf(
    const DistributedDataParallel& parallel,
    const std::map<std::string, ModuleOptimizerConfig>& rates);

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_PARAM_GROUPS_H_
