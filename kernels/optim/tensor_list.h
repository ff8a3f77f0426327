// What the ops of an optimizer's step share: the tensors as one list of blocks
// and the numbers that live on the device, so that a step never waits for the
// host and can be captured in a CUDA graph.
#ifndef MIMO_KERNELS_OPTIM_TENSOR_LIST_H_
#define MIMO_KERNELS_OPTIM_TENSOR_LIST_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

// A float32 or float64 parameter is its own master, a bfloat16 one is with its
// remainder (adamw.h).
struct AdamWTensor {
  void* param;         // [size] dtype
  int16_t* remainder;  // [size]; null: param is the master
  void* grad;          // [size] accumulator dtype
  void* exp_avg;       // [size] AdamWArgs::exp_avg_dtype, m
  void* exp_avg_sq;    // [size] accumulator dtype, v
  int64_t size;
  double lr_scale;      // times AdamWControl::lr
  double weight_decay;  // 0 where shapes have one dimension
  bool counted = true;  // in the norm; false: another rank counts it
};

// On the device of the list. All zero is the state before the first step.
struct AdamWControl {
  double lr;          // of the next step; the caller's
  double squares;     // sum of the gradients' squares; SumSquares'
  double norm;        // of the gradients, before clipping; ClipFactor's
  double grad_scale;  // that clips them; ClipFactor's
  int64_t steps;      // updates made; AdamW's
  int64_t skipped;    // updates not made, the norm not being finite; AdamW's
  // AdamW's own: lr / (1 - beta1^steps), 1 / sqrt(1 - beta2^steps).
  double rate, root2;
};

// At most kBlockElements elements of tensors[tensor], from `begin` on. Blocks
// are fixed by the sizes alone, so neither a partial sum a block nor where a
// vector loop begins depends on the threads.
inline constexpr int64_t kBlockElements = 1 << 14;
struct TensorBlock {
  int64_t tensor, begin;
};

// The tables that the ops read, made once: on a GPU in its memory.
class TensorList {
 public:
  // The tensors' buffers outlive the list. A remainder is there exactly
  // when `dtype`, the parameters', is not its own accumulator. On a GPU buffers
  // begin at multiples of 16 bytes. The tables are copied by `stream`.
  TensorList(const std::vector<AdamWTensor>& tensors, DType dtype,
             Stream stream);

  DType dtype() const { return dtype_; }
  int64_t num_blocks() const { return num_blocks_; }
  // In the device's memory.
  const AdamWTensor* tensors() const { return tensors_; }
  const TensorBlock* blocks() const { return blocks_; }
  double* partials() const { return partials_; }  // [num_blocks]: SumSquares'

 private:
  DType dtype_;
  int64_t num_blocks_;
  std::shared_ptr<void> memory_;
  AdamWTensor* tensors_ = nullptr;
  TensorBlock* blocks_ = nullptr;
  double* partials_ = nullptr;
};

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_OPTIM_TENSOR_LIST_H_
