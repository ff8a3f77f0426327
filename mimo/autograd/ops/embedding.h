// Differentiable lookups: text embedding with modality embeddings put at their
// tokens, row selection, and the tokens of a vision transformer.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_EMBEDDING_H_
#define MIMO_MIMO_AUTOGRAD_OPS_EMBEDDING_H_

#include <cstdint>
#include <vector>

#include "mimo/autograd/tape.h"
#include "mimo/nn/parallel_groups.h"
#include "mimo/nn/parameter.h"

namespace mimo {

// Rows of a modality and the positions in the flattened batch they belong to.
struct PlacedRows {
  Var rows;          // [n, H]
  Tensor positions;  // [n] int32, each < T and used once; < 0: nowhere
};

// out[t,:] = weight[ids[t],:] where ids[t] >= 0; placed rows at their
// positions; 0 elsewhere.  ids [T] int32, weight [V, H] -> [T, H]
// Of tp ranks each has a part of the vocabulary, weight [V/tp, H], and all have
// the same ids and placed rows. With sequence parallelism the result is
// token-sharded (collectives.h).
// Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
Var EmbedAndPlace(const Context& ctx, const Tensor& ids, Parameter& weight,
                  const std::vector<PlacedRows>& placed,
                  const ParallelGroups& groups = {});

// out[i,:] = x[index[i],:], 0 where index[i] < 0; no row twice.
// x [T, H], index [n] int32 -> [n, H]
Var SelectRows(const Context& ctx, const Var& x, const Tensor& index);

// Of each of the items the rows of the first part, then of the next.
// Each [items*n_i, H] -> [items * sum n_i, H]
Var ConcatRows(const Context& ctx, const std::vector<Var>& parts,
               int64_t items);

// The elements of all parts, one after another, and the parts of them again.
// Each [n_i, H_i] -> [sum n_i*H_i, 1], and back
Var PackRows(const Context& ctx, const std::vector<Var>& parts);
std::vector<Var> UnpackRows(const Context& ctx, const Var& packed,
                            const std::vector<Shape>& shapes);

// Patch embeddings of `images` images with class token and positions added.
// x [N*P, H], class_token [H], position [1+P, H] -> [N*(1+P), H]
Var VisionTokens(const Context& ctx, const Var& x, Parameter& class_token,
                 Parameter& position);

// The rows of VisionTokens without each image's first, its class token.
// x [N*tokens, H] -> [N*(tokens-1), H]
Var DropClassTokens(const Context& ctx, const Var& x, int64_t tokens);

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_EMBEDDING_H_
