// Checkpoint: trades memory for a second forward.
//
// Runs body(ctx, inputs) without recording it and keeps the inputs alone; the
// backward runs the body again on a child tape and walks that. The body must be
// a pure function of its inputs and of parameters. In the second run, in which
// alone ctx.tape is not null, nobody reads the values of its outputs: they may
// be undefined.
// Source: Chen et al. 2016, arXiv:1604.06174.
#ifndef MIMO_MIMO_AUTOGRAD_CHECKPOINT_H_
#define MIMO_MIMO_AUTOGRAD_CHECKPOINT_H_

#include <functional>
#include <vector>

#include "mimo/autograd/tape.h"
#include "mimo/nn/parameter.h"

namespace mimo {

using CheckpointBody = std::function<std::vector<Var>(
    const Context& ctx, const std::vector<Var>& inputs)>;

// `parameters`: all that the body uses; until its backward those that are not
// frozen are in use. Inputs may be undefined.
std::vector<Var> Checkpoint(const Context& ctx, std::vector<Var> inputs,
                            const std::vector<Parameter*>& parameters,
                            CheckpointBody body);

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_CHECKPOINT_H_
