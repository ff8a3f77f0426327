// Tensor: a contiguous row-major array: storage + offset + shape + dtype.
// Copies share the storage. A default Tensor is undefined (no storage).
#ifndef MIMO_MIMO_TENSOR_TENSOR_H_
#define MIMO_MIMO_TENSOR_TENSOR_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "absl/container/inlined_vector.h"
#include "absl/log/check.h"
#include "absl/types/span.h"
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
  template <typename T>
  absl::Span<T> span() const {
    CHECK(DTypeOf<T>::value == dtype_)
        << "tensor is " << Name(dtype_) << ", read as "
        << Name(DTypeOf<T>::value);
    return absl::MakeSpan(static_cast<T*>(data()), numel());
  }

  // Views of the same storage.
  Tensor Reshape(Shape shape) const;              // same elements
  Tensor Rows(int64_t begin, int64_t end) const;  // of dimension 0
  // Whether this handle is the storage's only owner.
  bool unique() const { return storage_.use_count() == 1; }

  Tensor Clone(Allocator& allocator) const;
  void CopyFrom(const Tensor& source);  // same shape and dtype
  void Zero();

 private:
  std::shared_ptr<void> storage_;
  int64_t offset_ = 0;  // bytes
  Shape shape_;
  DType dtype_ = DType::kFloat32;
  bool defined_ = false;
};

template <typename T>
Tensor Tensor::From(Allocator& allocator, Shape shape,
                    absl::Span<const T> values) {
  Tensor tensor(allocator, std::move(shape), DTypeOf<T>::value);
  CHECK_EQ(tensor.numel(), static_cast<int64_t>(values.size()));
  if (!values.empty()) {
    std::memcpy(tensor.data(), values.data(), tensor.bytes());
  }
  return tensor;
}

}  // namespace mimo

#endif  // MIMO_MIMO_TENSOR_TENSOR_H_
