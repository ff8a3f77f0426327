#include "kernels/elementwise/copy_2d.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/backend.h"

namespace mimo::kernels {
namespace {

class Copy2dTest : public BackendTest {};
MIMO_ON_BACKENDS(Copy2dTest);

TEST_P(Copy2dTest, CopiesTheBlockAndNothingElse) {
  for (DType dtype : {DType::kInt32, backend().dtype}) {
    for (auto [rows, columns] : {std::pair<int64_t, int64_t>{0, 3},
                                 {1, 1},
                                 {5, 7},
                                 {3, 0},
                                 {700, 97},
                                 {66001, 8}}) {
      // The last shape in units of 16 bytes, the others by the element.
      const bool by_units = columns % 8 == 0 && columns > 0;
      const int64_t skip = by_units ? 8 : 1;
      const int64_t src_stride = columns + (by_units ? 16 : 2);
      const int64_t dst_stride = columns + (by_units ? 8 : 5);
      std::vector<double> src(rows * src_stride + skip);
      for (size_t i = 0; i < src.size(); ++i) src[i] = i % 251;
      const Array src_on(backend(), dtype, src);
      const Array dst(backend(), dtype,
                      std::vector<double>(rows * dst_stride, -1));
      Copy2d({.src = static_cast<const char*>(src_on.data()) +
                     skip * SizeOf(dtype),
              .src_stride = src_stride,
              .dst = dst.data(),
              .dst_stride = dst_stride,
              .rows = rows,
              .columns = columns,
              .dtype = dtype},
             StreamOf(backend()));
      const std::vector<double> copied = dst.Values();
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < dst_stride; ++c) {
          ASSERT_EQ(copied[r * dst_stride + c],
                    c < columns ? src[skip + r * src_stride + c] : -1)
              << r << ", " << c << " of " << rows << " x " << columns;
        }
      }
    }
  }
}

}  // namespace
}  // namespace mimo::kernels
