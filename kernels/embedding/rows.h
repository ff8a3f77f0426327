// Rows by index: embedding lookup, placing modality embeddings at their tokens,
// selecting tokens; each is the other's backward.
//   gather       out[i,:]       = table[index[i],:]        0 where index[i] < 0
//   scatter add  table[index[i],:] += rows[i,:]            skipped where < 0
//   part         out[i] = index[i] - begin    -1 outside [begin, begin + V)
// The last is for a table of which somebody else has the other rows.
// Scatter adds equal indices in the order of i (deterministic); beta = 0 clears
// the whole table first. An index past the table is fatal.
// Bytes (the floor): gather 2*T*H*size, scatter 3*T*H*size (+ V*H if beta = 0).
// Numerics: sums in the accumulator dtype, rounded once to the table's.
#ifndef MIMO_KERNELS_EMBEDDING_ROWS_H_
#define MIMO_KERNELS_EMBEDDING_ROWS_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct GatherRowsArgs {
  const void* table;                 // [V, H] dtype
  const int32_t* index;              // [T], each < V
  void* out;                         // [T, H] dtype
  bool accumulate = false;           // out += rather than out =
  int64_t rows, table_rows, hidden;  // T, V, H
  DType dtype;
};
MIMO_OP(GatherRows, GatherRowsArgs);

struct ScatterAddRowsArgs {
  const void* rows_in;               // [T, H] dtype
  const int32_t* index;              // [T], each < V
  void* table;                       // [V, H] table_dtype
  float beta;                        // 0: table starts from zero; 1: adds to it
  bool unique = false;               // no two indices >= 0 are equal
  void* workspace = nullptr;         // ScatterAddRowsWorkspaceBytes(...) bytes
  int64_t rows, table_rows, hidden;  // T, V, H
  DType dtype;
  DType table_dtype;  // dtype, or its accumulator (a main_grad)
};
MIMO_OP(ScatterAddRows, ScatterAddRowsArgs);
struct IndexOfPartArgs {
  const int32_t* index;       // [T]
  int32_t* out;               // [T]
  int64_t rows;               // T
  int64_t begin, table_rows;  // the part's first row, V
};
MIMO_OP(IndexOfPart, IndexOfPartArgs);

int64_t ScatterAddRowsWorkspaceBytes(int64_t rows, bool unique, Device device);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_EMBEDDING_ROWS_H_
