// The `mimo` binary.
#include <string>
#include <vector>

#include "cli/mimo_main.h"
#include "models/llava/llava.h"

int main(int argc, char** argv) {
  return mimo::MimoMain({argv + 1, argv + argc}, mimo::BuiltinModules());
}
