// What colours a flag has, told from a flat drawing of it.
#ifndef MIMO_MIMO_DATA_FLAGS_COLOURS_H_
#define MIMO_MIMO_DATA_FLAGS_COLOURS_H_

#include <string>
#include <vector>

#include "mimo/data/image/image.h"

namespace mimo {

// The colours that cover at least 5.5 % of the drawing, and at least two (no
// flag has one), in alphabetical order: of black, blue, green, orange, red,
// white, yellow.
std::vector<std::string> FlagColours(const Image& rgba);

// {"blue", "red", "white"} -> "blue, red and white".
std::string ColourList(const std::vector<std::string>& colours);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_FLAGS_COLOURS_H_
