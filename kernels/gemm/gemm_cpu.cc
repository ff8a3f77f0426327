#include <cblas.h>

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/base/float8.h"
#include "kernels/base/parallel.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_checked.h"

namespace mimo::kernels {
namespace {

void Blas(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k,
          float alpha, const float* a, int lda, const float* b, int ldb,
          float beta, float* c, int ldc) {
  cblas_sgemm(CblasRowMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c,
              ldc);
}
void Blas(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k,
          double alpha, const double* a, int lda, const double* b, int ldb,
          float beta, double* c, int ldc) {
  cblas_dgemm(CblasRowMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c,
              ldc);
}

// Into how many blocks to cut `size` rows (or columns) of a product of `flops`:
// a power of two, so that threads get equal shares. OpenBLAS packs the other
// operand again for each block: under about 300 rows that costs some 5 %, which
// only the first cut is worth.
int64_t Cuts(int64_t size, int64_t min_first, int64_t min_size, double flops) {
  constexpr double kMinFlops = 2e6;  // 20 us on one core
  int64_t cuts = 1;
  while (flops >= 2 * kMinFlops * static_cast<double>(cuts) &&
         size >= 2 * cuts * (cuts == 1 ? min_first : min_size)) {
    cuts *= 2;
  }
  return cuts;
}

// Block size: `size` in `cuts` parts, whole micro-kernel tiles.
int64_t BlockSize(int64_t size, int64_t cuts) {
  constexpr int64_t kTile = 16;
  return ((size + cuts - 1) / cuts + kTile - 1) / kTile * kTile;
}

// out = alpha op(a) op(b) + beta * out. The blocks depend on the shape alone
// and K is never cut: the result is the same whatever the number of threads.
template <typename T>
void Product(const GemmArgs& args, void* out, T alpha = 1) {
  const int64_t m = args.m, n = args.n, k = args.k;
  const int64_t lda = args.lda, ldb = args.ldb, ldc = args.ldc;
  T* c = static_cast<T*>(out);
  if (m == 0 || n == 0) return;
  if (k == 0) {  // OpenBLAS refuses the leading dimension 0
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        T& x = c[i * ldc + j];
        x = args.beta == 0 ? T{0} : static_cast<T>(args.beta) * x;
      }
    }
    return;
  }
  const double flops = 2.0 * m * n * k;
  // The longer side is cut first, the other only where it is long too.
  int64_t m_cuts = 1, n_cuts = 1;
  if (m >= n) {
    m_cuts = Cuts(m, 32, 300, flops);
    n_cuts = Cuts(n, 2048, 2048, flops / m_cuts);
  } else {
    n_cuts = Cuts(n, 32, 300, flops);
    m_cuts = Cuts(m, 2048, 2048, flops / n_cuts);
  }
  const int64_t m_block = BlockSize(m, m_cuts), n_block = BlockSize(n, n_cuts);
  const int64_t m_blocks = (m + m_block - 1) / m_block;
  const int64_t n_blocks = (n + n_block - 1) / n_block;
  ParallelFor(m_blocks * n_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t i = block / n_blocks * m_block;
      const int64_t j = block % n_blocks * n_block;
      Blas(args.transpose_a ? CblasTrans : CblasNoTrans,
           args.transpose_b ? CblasTrans : CblasNoTrans,
           std::min(m_block, m - i), std::min(n_block, n - j), k, alpha,
           static_cast<const T*>(args.a) + (args.transpose_a ? i : i * lda),
           lda,
           static_cast<const T*>(args.b) + (args.transpose_b ? j * ldb : j),
           ldb, args.beta, c + i * ldc + j, ldc);
    }
  });
}

// The values of 8-bit floats.
template <typename T, typename Code>
std::vector<T> Decoded(const void* codes, int64_t size) {
  static const auto values = [] {
    std::array<float, 256> table;
    for (int i = 0; i < 256; ++i) {
      Code code;
      code.bits = i;
      table[i] = static_cast<float>(code);
    }
    return table;
  }();
  std::vector<T> decoded(size);
  const uint8_t* bits = static_cast<const uint8_t*>(codes);
  ParallelFor(size, 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) decoded[i] = values[bits[i]];
  });
  return decoded;
}
template <typename T>
std::vector<T> Decoded(DType dtype, const void* codes, int64_t size) {
  return dtype == DType::kFloat8E4M3 ? Decoded<T, Float8E4M3>(codes, size)
                                     : Decoded<T, Float8E5M2>(codes, size);
}

template <typename T>
void ProductOfFloat8(GemmArgs args, void* out) {
  const std::vector<T> a = Decoded<T>(args.dtype, args.a, args.m * args.k);
  const std::vector<T> b = Decoded<T>(*args.b_dtype, args.b, args.n * args.k);
  args.a = a.data();
  args.b = b.data();
  Product<T>(args, out, static_cast<T>(*args.a_scale) * *args.b_scale);
}

}  // namespace

void GemmCpu(const GemmArgs& unchecked) {
  // The blocks are shared out here; OpenBLAS's own threads only get in the way.
  static const bool once = (openblas_set_num_threads(1), true);
  static_cast<void>(once);
  const GemmArgs args = Checked(unchecked);
  void* product = args.z != nullptr ? args.z : args.c;
  DispatchCpuFloat(*args.c_dtype, [&]<typename T>() {
    IsFloat8(args.dtype) ? ProductOfFloat8<T>(args, product)
                         : Product<T>(args, product);
  });
  if (!HasEpilogue(args) || args.n == 0) return;
  BiasActivationForwardCpu({.x = product,
                            .bias = args.bias,
                            .y = args.c,
                            .z = args.bias != nullptr ? args.z : nullptr,
                            .activation = args.activation,
                            .tokens = args.m,
                            .features = args.n,
                            .dtype = *args.c_dtype});
}

}  // namespace mimo::kernels
