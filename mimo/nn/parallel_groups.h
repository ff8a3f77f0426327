// ParallelGroups: the ranks that a module is spread over, as its layers see
// them.
#ifndef MIMO_MIMO_NN_PARALLEL_GROUPS_H_
#define MIMO_MIMO_NN_PARALLEL_GROUPS_H_

#include "comm/base/communicator.h"

namespace mimo {

// Null: one rank. Communicators outlive the module.
struct ParallelGroups {
  Communicator* tp = nullptr;  // each has a part of every layer
  Communicator* cp = nullptr;  // each has a part of every sequence
  Communicator* pp = nullptr;  // each has a part of the layers, in order
  // Where tp ranks would compute the same, on all tokens (norms, residuals),
  // each has a part of the tokens instead.
  // Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2.
  bool sequence_parallel = false;

  // The ranks that tokens are sharded over; null: each has all.
  Communicator* tokens() const { return sequence_parallel ? tp : nullptr; }
  int tp_size() const { return tp == nullptr ? 1 : tp->size(); }
  int tp_rank() const { return tp == nullptr ? 0 : tp->rank(); }
  int cp_size() const { return cp == nullptr ? 1 : cp->size(); }
  int cp_rank() const { return cp == nullptr ? 0 : cp->rank(); }
  int pp_size() const { return pp == nullptr ? 1 : pp->size(); }
  int pp_rank() const { return pp == nullptr ? 0 : pp->rank(); }
  bool IsFirstStage() const { return pp_rank() == 0; }
  bool IsLastStage() const { return pp_rank() + 1 == pp_size(); }
};

}  // namespace mimo

#endif  // MIMO_MIMO_NN_PARALLEL_GROUPS_H_
