// The `mimo` binary.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cli/mimo_main.h"
#include "models/llava/llava.h"

int main(int argc, char** argv) {
  // `bazel run` starts programs in a folder of its own and says where the user
  // is: relative paths mean that place.
  const char* folder = std::getenv("BUILD_WORKING_DIRECTORY");
  if (folder != nullptr && chdir(folder) != 0) {
    std::perror(folder);
    return 1;
  }
  return mimo::MimoMain({argv + 1, argv + argc}, mimo::BuiltinModules());
}
