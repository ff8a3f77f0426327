#include "mimo/autograd/module_scope.h"

#include "kernels/base/device.h"
#include "mimo/autograd/tape.h"

namespace mimo {

ModuleScope::ModuleScope(const Context& ctx, const std::string& path)
    : ctx_(ctx),
      outer_(ctx.tape == nullptr ? nullptr : ctx.tape->scope_),
      tag_(*ctx.allocator, path) {
  if (ctx.tape != nullptr) ctx.tape->scope_ = &path;
  BeginRange(ctx.compute.device, path);
}

ModuleScope::~ModuleScope() {
  EndRange(ctx_.compute.device);
  if (ctx_.tape != nullptr) ctx_.tape->scope_ = outer_;
}

}  // namespace mimo
