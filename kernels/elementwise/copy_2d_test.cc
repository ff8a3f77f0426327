#include "kernels/elementwise/copy_2d.h"

#include <cstdint>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace mimo::kernels {
namespace {

TEST(Copy2d, CopiesTheBlockAndNothingElse) {
  for (auto [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 3}, {1, 1}, {5, 7}, {3, 0}, {700, 97}}) {
    const int64_t src_stride = columns + 2, dst_stride = columns + 5;
    std::vector<int32_t> src(rows * src_stride + 1), dst(rows * dst_stride, -1);
    std::iota(src.begin(), src.end(), 0);
    Copy2d({.src = src.data() + 1,
            .src_stride = src_stride,
            .dst = dst.data(),
            .dst_stride = dst_stride,
            .rows = rows,
            .columns = columns,
            .dtype = DType::kInt32},
           {});
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < dst_stride; ++c) {
        ASSERT_EQ(dst[r * dst_stride + c],
                  c < columns ? src[1 + r * src_stride + c] : -1);
      }
    }
  }
}

}  // namespace
}  // namespace mimo::kernels
