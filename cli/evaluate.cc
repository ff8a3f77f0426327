#include "cli/commands.h"
namespace mimo {
absl::Status RunEvaluate(const Words& words, const ModuleRegistry& registry) {
  return absl::UnimplementedError("evaluate");
}
}  // namespace mimo
