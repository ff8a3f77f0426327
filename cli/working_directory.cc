#include "cli/working_directory.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace mimo {

void EnterUsersFolder() {
  const char* folder = std::getenv("BUILD_WORKING_DIRECTORY");
  if (folder != nullptr && chdir(folder) != 0) {
    std::perror(folder);
    std::exit(1);
  }
}

}  // namespace mimo
