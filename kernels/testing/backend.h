// Backend: where a test body runs and in what dtype. One body runs on every
// backend and is compared with itself on Oracle(); a GPU's are skipped, by
// name, where there is none.
//
//   class RmsNormTest : public BackendTest {};
//   MIMO_ON_BACKENDS(RmsNormTest);
//   TEST_P(RmsNormTest, IsNearFloat64) {
//     EXPECT_LT(RelativeL2(Forward(backend(), in), Forward(Oracle(), in)), ..);
//   }
#ifndef MIMO_KERNELS_TESTING_BACKEND_H_
#define MIMO_KERNELS_TESTING_BACKEND_H_

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo {

struct Backend {
  Device device;
  DType dtype;
};
std::ostream& operator<<(std::ostream& out, const Backend& backend);

// cpu float32, cuda float32, cuda bfloat16.
std::vector<Backend> Backends();
inline Backend Oracle() { return {Device::kCpu, DType::kFloat64}; }

// The stream that a backend's ops run on; one a device.
Stream StreamOf(const Backend& backend);

// Unit roundoff: the largest relative error of one rounding to nearest.
double Roundoff(DType dtype);

// n values uniform on [-scale, scale), a function of the seed, each exact in
// bfloat16 when scale is a power of two: the same numbers on every backend.
std::vector<double> RandomValues(int64_t n, uint32_t seed, double scale = 1);

// A buffer on a backend's device, its values passed as doubles.
class Array {
 public:
  // Of the backend's dtype; or of another (indices, statistics).
  Array(const Backend& backend, const std::vector<double>& values)
      : Array(backend, backend.dtype, values) {}
  Array(const Backend& backend, DType dtype, const std::vector<double>& values);
  // n NaNs: an output that is not written, or is read first, shows.
  static Array Poisoned(const Backend& backend, int64_t n) {
    return Poisoned(backend, backend.dtype, n);
  }
  static Array Poisoned(const Backend& backend, DType dtype, int64_t n);
  // Uninitialised in effect: every byte is 0xff.
  static Array Workspace(const Backend& backend, int64_t bytes);

  void* data() const { return memory_.get(); }
  // The values; waits for the backend's stream.
  std::vector<double> Values() const;

 private:
  Array(const Backend& backend, DType dtype, int64_t n, int fill);

  Backend backend_;
  DType dtype_;
  int64_t size_;
  std::shared_ptr<void> memory_;
};

// A test on every backend.
class BackendTest : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override;
  const Backend& backend() const { return GetParam(); }
};

std::string BackendName(const testing::TestParamInfo<Backend>& info);
#define MIMO_ON_BACKENDS(Suite)                                              \
  INSTANTIATE_TEST_SUITE_P(On, Suite, testing::ValuesIn(::mimo::Backends()), \
                           ::mimo::BackendName)

}  // namespace mimo

#endif  // MIMO_KERNELS_TESTING_BACKEND_H_
