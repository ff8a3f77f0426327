#include "mimo/tensor/tensor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace mimo {

int64_t NumElements(absl::Span<const int64_t> shape) {
  int64_t n = 1;
  for (int64_t dim : shape) n *= dim;
  return n;
}

std::string ToString(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

Tensor::Tensor(Allocator& allocator, Shape shape, DType dtype)
    : stream_(allocator.stream()),
      shape_(std::move(shape)),
      dtype_(dtype),
      defined_(true) {
  for (int64_t dim : shape_) CHECK_GE(dim, 0) << ToString(shape_);
  storage_ = allocator.Allocate(bytes());
}

Tensor Tensor::Meta(Shape shape, DType dtype) {
  Tensor tensor;
  tensor.shape_ = std::move(shape);
  tensor.dtype_ = dtype;
  tensor.defined_ = true;
  return tensor;
}

Tensor Tensor::Zeros(Allocator& allocator, Shape shape, DType dtype) {
  Tensor tensor(allocator, std::move(shape), dtype);
  tensor.Zero();
  return tensor;
}

Tensor Tensor::Reshape(Shape shape) const {
  CHECK_EQ(NumElements(shape), numel())
      << ToString(shape_) << " as " << ToString(shape);
  Tensor view = *this;
  view.shape_ = std::move(shape);
  return view;
}

Tensor Tensor::Rows(int64_t begin, int64_t end) const {
  CHECK(0 <= begin && begin <= end && end <= dim(0))
      << "rows " << begin << " to " << end << " of " << ToString(shape_);
  Tensor view = *this;
  const int64_t row_bytes = dim(0) == 0 ? 0 : bytes() / dim(0);
  view.offset_ += begin * row_bytes;
  view.shape_[0] = end - begin;
  return view;
}

Tensor Tensor::Clone(Allocator& allocator) const {
  Tensor copy(allocator, shape_, dtype_);
  copy.CopyFrom(*this);
  return copy;
}

void Tensor::CopyFrom(const Tensor& source) {
  CHECK(source.shape_ == shape_ && source.dtype_ == dtype_)
      << ToString(source.shape_) << " " << Name(source.dtype_) << " into "
      << ToString(shape_) << " " << Name(dtype_);
  const Stream stream = device() == Device::kCpu ? source.stream_ : stream_;
  CopyBytes(data(), source.data(), bytes(), stream);
  if (device() == Device::kCpu) Synchronize(stream);
}

void Tensor::Zero() { FillBytes(data(), 0, bytes(), stream_); }

}  // namespace mimo
