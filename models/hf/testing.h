// The goldens of tests/golden, unpacked for a test.
#ifndef MIMO_MODELS_HF_TESTING_H_
#define MIMO_MODELS_HF_TESTING_H_

#include <cstdlib>
#include <string>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace mimo {

inline constexpr const char* kGoldens[] = {"llava15_tiny", "llava_gqa_tied",
                                           "llava_full_multi"};

// The folder of the golden, as it is in the archive.
inline std::string UnpackGolden(const std::string& name) {
  const std::string command = absl::StrCat("tar xzf tests/golden/", name,
                                           ".tgz -C ", testing::TempDir());
  CHECK_EQ(std::system(command.c_str()), 0) << command;
  return absl::StrCat(testing::TempDir(), "/", name);
}

}  // namespace mimo

#endif  // MIMO_MODELS_HF_TESTING_H_
