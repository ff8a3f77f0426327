#include "mimo/autograd/module_scope.h"

#include "mimo/autograd/tape.h"

namespace mimo {

ModuleScope::ModuleScope(const Context& ctx, const std::string& path,
                         bool backward)
    : ctx_(ctx),
      outer_(ctx.tape == nullptr ? nullptr : ctx.tape->scope_),
      tag_(*ctx.allocator, path),
      range_(ctx, backward ? path + " backward" : path, ProfileRange::kModule) {
  if (ctx.tape != nullptr) ctx.tape->scope_ = &path;
}

ModuleScope::~ModuleScope() {
  if (ctx_.tape != nullptr) ctx_.tape->scope_ = outer_;
}

}  // namespace mimo
