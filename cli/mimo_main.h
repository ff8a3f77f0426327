// The whole command, over a registry of modules: a program with modules of its
// own calls MimoMain with a registry that has them (examples/03_own_module.cc).
#ifndef MIMO_CLI_MIMO_MAIN_H_
#define MIMO_CLI_MIMO_MAIN_H_

#include <string>
#include <vector>

#include "models/spec/module_spec.h"

namespace mimo {

// Runs `words` (argv without the program's name) and returns the exit code: 0
// done, 2 the user's mistake, 1 a failure; each with one line on stderr.
int MimoMain(const std::vector<std::string>& words,
             const ModuleRegistry& registry);

}  // namespace mimo

#endif  // MIMO_CLI_MIMO_MAIN_H_
