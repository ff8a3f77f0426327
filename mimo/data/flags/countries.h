// The 249 countries and territories of ISO 3166-1.
#ifndef MIMO_MIMO_DATA_FLAGS_COUNTRIES_H_
#define MIMO_MIMO_DATA_FLAGS_COUNTRIES_H_

#include <map>
#include <string>
#include <string_view>

namespace mimo {

// Upper-case alpha-2 code -> continent.
const std::map<std::string, std::string>& Continents();

// Alpha-2 code -> name, out of Unicode's emoji-test.txt (its "flag: Italy").
std::map<std::string, std::string> FlagNames(std::string_view emoji_test);

}  // namespace mimo

#endif  // MIMO_MIMO_DATA_FLAGS_COUNTRIES_H_
