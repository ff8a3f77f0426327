// ModuleScope: marks the work of a module. What is allocated in it counts for
// the module (the innermost scope wins), and profilers (ours, NVTX) show it as
// a range of the module's path, with " backward" behind it in the backward.
#ifndef MIMO_MIMO_AUTOGRAD_MODULE_SCOPE_H_
#define MIMO_MIMO_AUTOGRAD_MODULE_SCOPE_H_

#include <string>

#include "mimo/autograd/context.h"
#include "mimo/autograd/profiler.h"

namespace mimo {

class ModuleScope {
 public:
  // `path` outlives the tape of ctx.
  ModuleScope(const Context& ctx, const std::string& path,
              bool backward = false);
  ~ModuleScope();
  ModuleScope(const ModuleScope&) = delete;
  ModuleScope& operator=(const ModuleScope&) = delete;

 private:
  const Context& ctx_;
  const std::string* outer_;  // the tape's scope before
  AllocationTag tag_;
  ProfileRange range_;
};

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_MODULE_SCOPE_H_
