// Tensor: a contiguous row-major array: storage + offset + shape + dtype, on
// its allocator's device. Copies share the storage. A default Tensor is
// undefined (no storage). What these members do to a GPU's memory is queued on
// the allocator's stream.
#ifndef MIMO_MIMO_TENSOR_TENSOR_H_
#define MIMO_MIMO_TENSOR_TENSOR_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/container/inlined_vector.h"
#include "absl/log/check.h"
#include "absl/types/span.h"
#include "kernels/base/device.h"
#include "kernels/base/dtype.h"
#include "mimo/tensor/allocator.h"

namespace mimo {

using Shape = absl::InlinedVector<int64_t, 4>;

int64_t NumElements(absl::Span<const int64_t> shape);
std::string ToString(absl::Span<const int64_t> shape);  // "[2, 3]"

class Tensor {
 public:
  Tensor() = default;
  // Uninitialised.
  Tensor(Allocator& allocator, Shape shape, DType dtype);
  static Tensor Zeros(Allocator& allocator, Shape shape, DType dtype);
  // Shape and dtype without memory: for counting what a model would need.
  static Tensor Meta(Shape shape, DType dtype);
  template <typename T>
  static Tensor From(Allocator& allocator, Shape shape,
                     absl::Span<const T> values);

  bool defined() const { return defined_; }
  const Shape& shape() const { return shape_; }
  int64_t rank() const { return static_cast<int64_t>(shape_.size()); }
  int64_t dim(int i) const {
    DCHECK_LT(static_cast<size_t>(i), shape_.size());
    return shape_[i];
  }
  int64_t numel() const { return NumElements(shape_); }
  int64_t bytes() const { return numel() * SizeOf(dtype_); }
  DType dtype() const { return dtype_; }

  void* data() const { return static_cast<char*>(storage_.get()) + offset_; }
  Device device() const { return stream_.device; }
  // The address, for a kernel.
  template <typename T>
  T* pointer() const {
    CHECK(DTypeOf<T>::value == dtype_)
        << "tensor is " << Name(dtype_) << ", read as "
        << Name(DTypeOf<T>::value);
    return static_cast<T*>(data());
  }
  // The values of a tensor in host memory.
  template <typename T>
  absl::Span<T> span() const {
    CHECK(device() == Device::kCpu) << "a GPU's memory, read by the host";
    return absl::MakeSpan(pointer<T>(), numel());
  }

  // Views of the same storage.
  Tensor Reshape(Shape shape) const;              // same elements
  Tensor Rows(int64_t begin, int64_t end) const;  // of dimension 0
  // Whether this handle is the storage's only owner.
  bool unique() const { return storage_.use_count() == 1; }

  Tensor Clone(Allocator& allocator) const;  // perhaps of another device
  // Same shape and dtype; either may be on a GPU. Into host memory, it is there
  // on return.
  void CopyFrom(const Tensor& source);
  void Zero();

 private:
  std::shared_ptr<void> storage_;
  int64_t offset_ = 0;  // bytes
  Stream stream_;       // the allocator's
  Shape shape_;
  DType dtype_ = DType::kFloat32;
  bool defined_ = false;
};

template <typename T>
Tensor Tensor::From(Allocator& allocator, Shape shape,
                    absl::Span<const T> values) {
  Tensor tensor(allocator, std::move(shape), DTypeOf<T>::value);
  CHECK_EQ(tensor.numel(), static_cast<int64_t>(values.size()));
  CopyBytes(tensor.data(), values.data(), tensor.bytes(), allocator.stream());
  return tensor;
}

}  // namespace mimo

#endif  // MIMO_MIMO_TENSOR_TENSOR_H_
