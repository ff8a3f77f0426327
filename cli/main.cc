// The `mimo` binary.
#include "cli/mimo_main.h"
#include "cli/working_directory.h"
#include "models/llava/llava.h"

int main(int argc, char** argv) {
  mimo::EnterUsersFolder();
  return mimo::MimoMain({argv + 1, argv + argc}, mimo::BuiltinModules());
}
