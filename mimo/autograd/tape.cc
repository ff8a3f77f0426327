#include "mimo/autograd/tape.h"

#include <cstdint>

#include "absl/hash/hash.h"
#include "absl/log/check.h"
#include "absl/strings/string_view.h"
#include "kernels/elementwise/add.h"
#include "mimo/autograd/module_scope.h"

namespace mimo {
namespace {

uint64_t Digest(const Tensor& tensor) {
#ifdef NDEBUG
  (void)tensor;
  return 0;
#else
  if (!tensor.defined() || tensor.bytes() == 0 ||
      tensor.device() != Device::kCpu) {
    return 0;
  }
  return absl::HashOf(absl::string_view(static_cast<const char*>(tensor.data()),
                                        tensor.bytes()));
#endif
}

}  // namespace

Saved::Saved(Tensor tensor) : tensor_(std::move(tensor)) {
  digest_ = Digest(tensor_);
}

const Tensor& Saved::get() const {
  CHECK_EQ(Digest(tensor_), digest_)
      << "a tensor saved for backward was overwritten";
  return tensor_;
}

Tensor Saved::Take() {
  get();
  return std::move(tensor_);
}

Slot Tape::NewSlot() {
  grads_.emplace_back();
  return static_cast<Slot>(grads_.size()) - 1;
}

void Tape::Backward(const Context& exec, std::vector<Seed> seeds) {
  BackwardContext ctx(*this, exec);
  for (Seed& seed : seeds) ctx.PassGrad(seed.slot, std::move(seed.grad));
  seeds.clear();
  Context untaped = exec;  // backwards record nothing
  untaped.tape = nullptr;
  while (!nodes_.empty()) {
    // As far as the scope goes.
    const std::string* path = nodes_.back()->scope_;
    std::optional<ModuleScope> scope;
    if (path != nullptr) scope.emplace(untaped, *path, /*backward=*/true);
    do {
      nodes_.back()->Backward(ctx);
      nodes_.pop_back();
    } while (!nodes_.empty() && nodes_.back()->scope_ == path);
  }
}

Tensor BackwardContext::Take(Slot slot) {
  if (slot == kNoGrad) return Tensor();
  return std::move(tape_.grads_.at(slot));
}

BackwardContext::Sink BackwardContext::GradFor(Slot slot, const Shape& shape,
                                               DType dtype) {
  if (slot == kNoGrad) return {};
  Tensor& grad = tape_.grads_.at(slot);
  if (!grad.defined()) {
    grad = exec_.Empty(shape, dtype);
    return {grad, false};
  }
  CHECK(grad.shape() == shape && grad.dtype() == dtype)
      << "gradient " << ToString(grad.shape()) << ", wanted "
      << ToString(shape);
  if (!grad.unique()) grad = grad.Clone(*exec_.allocator);
  return {grad, true};
}

void BackwardContext::PassGrad(Slot slot, Tensor grad) {
  if (slot == kNoGrad || !grad.defined()) return;
  Tensor& held = tape_.grads_.at(slot);
  if (!held.defined()) {
    held = std::move(grad);
    return;
  }
  const Sink sink = GradFor(slot, grad.shape(), grad.dtype());
  kernels::Add({.a = sink.data(),
                .b = grad.data(),
                .out = sink.data(),
                .size = grad.numel(),
                .dtype = grad.dtype()},
               exec_.compute);
}

}  // namespace mimo
