#include "kernels/optim/tensor_list.h"

#include "absl/log/check.h"
#include "kernels/base/device.h"

namespace mimo::kernels {

TensorList::TensorList(const std::vector<AdamWTensor>& tensors, DType dtype,
                       Stream stream)
    : dtype_(dtype) {
  std::vector<TensorBlock> blocks;
  for (const AdamWTensor& tensor : tensors) {
    if (tensor.size == 0) continue;
    CHECK_EQ(tensor.remainder != nullptr, dtype != AccumulatorOf(dtype))
        << "AdamW: remainders go with parameters in " << Name(dtype);
    if (stream.device == Device::kCuda) {
      const void* buffers[] = {tensor.param, tensor.remainder, tensor.grad,
                               tensor.exp_avg, tensor.exp_avg_sq};
      for (const void* buffer : buffers)
        CHECK_EQ(reinterpret_cast<uintptr_t>(buffer) % 16, 0u);
    }
    const int64_t index = &tensor - tensors.data();
    for (int64_t begin = 0; begin < tensor.size; begin += kBlockElements)
      blocks.push_back({index, begin});
  }
  num_blocks_ = blocks.size();
  const int64_t tensor_bytes = tensors.size() * sizeof(AdamWTensor);
  const int64_t block_bytes = blocks.size() * sizeof(TensorBlock);
  const int64_t bytes =
      tensor_bytes + block_bytes + num_blocks_ * sizeof(double);
  if (bytes == 0) return;
  const Device device = stream.device;
  char* memory = static_cast<char*>(AllocateMemory(device, bytes));
  CHECK(memory != nullptr) << "no memory for a list of " << tensors.size()
                           << " tensors, " << bytes << " bytes";
  memory_ = std::shared_ptr<void>(memory,
                                  [device](void* p) { FreeMemory(device, p); });
  tensors_ = reinterpret_cast<AdamWTensor*>(memory);
  blocks_ = reinterpret_cast<TensorBlock*>(memory + tensor_bytes);
  partials_ = reinterpret_cast<double*>(memory + tensor_bytes + block_bytes);
  CopyBytes(tensors_, tensors.data(), tensor_bytes, stream);
  CopyBytes(blocks_, blocks.data(), block_bytes, stream);
}

}  // namespace mimo::kernels
