// The mimo command in the test's own process, and its files.
#ifndef MIMO_TESTS_TESTING_RUN_MIMO_H_
#define MIMO_TESTS_TESTING_RUN_MIMO_H_

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/mimo_main.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/checkpoint/safetensors.h"
#include "mimo/data/file.h"
#include "models/llava/llava.h"

namespace mimo {

struct Ran {
  int code;
  std::string out, err;
};

inline Ran RunMimo(const std::vector<std::string>& words,
                   const ModuleRegistry& registry = BuiltinModules()) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Ran ran;
  ran.code = MimoMain(words, registry);
  ran.out = testing::internal::GetCapturedStdout();
  ran.err = testing::internal::GetCapturedStderr();
  return ran;
}

// An empty folder of the running test.
inline std::string TestFolder(const std::string& name) {
  const std::string folder = absl::StrCat(
      testing::TempDir(), "/",
      testing::UnitTest::GetInstance()->current_test_info()->name(), "/", name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

inline std::string Write(const std::string& path, const std::string& bytes) {
  CHECK_OK(WriteFile(path, bytes));
  return path;
}

inline std::string Read(const std::string& path) {
  const auto bytes = ReadFile(path);
  CHECK_OK(bytes.status());
  return *bytes;
}

// The lines of a metrics file; `split` "" are those of training.
inline std::vector<nlohmann::json> ReadMetrics(const std::string& path,
                                               const std::string& split = "") {
  std::vector<nlohmann::json> lines;
  for (absl::string_view line :
       absl::StrSplit(Read(path), '\n', absl::SkipEmpty())) {
    nlohmann::json json = nlohmann::json::parse(line);
    if (json.value("split", "") == split) lines.push_back(std::move(json));
  }
  return lines;
}

// The same without what no two runs share.
inline std::vector<nlohmann::json> Untimed(std::vector<nlohmann::json> lines) {
  for (nlohmann::json& line : lines) {
    line.erase("tokens_per_second");
    line.erase("iteration_time_ms");
  }
  return lines;
}

// All tensors of a file as doubles.
struct HostTensor {
  Shape shape;
  std::vector<double> values;
};
inline std::map<std::string, HostTensor> ReadArrays(const std::string& path) {
  Allocator allocator;
  const auto file = SafeTensors::Open(path);
  CHECK_OK(file.status());
  std::map<std::string, HostTensor> arrays;
  for (const auto& [name, info] : file->tensors()) {
    const bool whole =
        info.dtype == DType::kInt64 || info.dtype == DType::kInt32;
    HostTensor& array = arrays[name];
    array.shape = info.shape;
    if (whole) {
      const Tensor tensor = *file->Load(name, allocator, DType::kInt64);
      array.values.assign(tensor.span<int64_t>().begin(),
                          tensor.span<int64_t>().end());
    } else {
      const Tensor tensor = *file->Load(name, allocator, DType::kFloat64);
      array.values.assign(tensor.span<double>().begin(),
                          tensor.span<double>().end());
    }
  }
  return arrays;
}

inline double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (double value : x) sum += value * value;
  return std::sqrt(sum);
}

// ||a - b|| / ||b||, infinite where the sizes differ. NaN stays NaN.
inline double RelativeL2(const std::vector<double>& a,
                         const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  std::vector<double> difference(a.size());
  for (size_t i = 0; i < a.size(); ++i) difference[i] = a[i] - b[i];
  const double norm = Norm(b);
  return norm > 0 ? Norm(difference) / norm : Norm(difference);
}

}  // namespace mimo

#endif  // MIMO_TESTS_TESTING_RUN_MIMO_H_
