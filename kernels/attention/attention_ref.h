// The float64 path of attention.h: its formulas as they stand, a row at a time.
#ifndef MIMO_KERNELS_ATTENTION_ATTENTION_REF_H_
#define MIMO_KERNELS_ATTENTION_ATTENTION_REF_H_

#include "kernels/attention/attention.h"

namespace mimo::kernels {

void AttentionForwardRef(const AttentionForwardArgs& args);
void AttentionBackwardRef(const AttentionBackwardArgs& args);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ATTENTION_ATTENTION_REF_H_
