// What both sides of Gemm ask of its arguments.
#ifndef MIMO_KERNELS_GEMM_GEMM_CHECKED_H_
#define MIMO_KERNELS_GEMM_GEMM_CHECKED_H_

#include <algorithm>
#include <limits>

#include "absl/log/check.h"
#include "kernels/gemm/gemm.h"

namespace mimo::kernels {

inline bool HasEpilogue(const GemmArgs& args) {
  return args.bias != nullptr || args.activation != Activation::kIdentity;
}

// The arguments with every default filled in.
inline GemmArgs Checked(GemmArgs args) {
  const int64_t m = args.m, n = args.n, k = args.k;
  CHECK(m >= 0 && n >= 0 && k >= 0)
      << "Gemm of " << m << " x " << n << " x " << k;
  const auto fill = [](int64_t& ld, int64_t columns) {
    if (ld == 0) ld = columns;
    CHECK_GE(ld, columns) << "Gemm: rows overlap";
  };
  fill(args.lda, args.transpose_a ? m : k);
  fill(args.ldb, args.transpose_b ? k : n);
  fill(args.ldc, n);
  CHECK_LE(std::max({m, n, k, args.lda, args.ldb, args.ldc}),
           int64_t{std::numeric_limits<int>::max()});
  CHECK(args.beta == 0 || args.beta == 1) << "Gemm: beta " << args.beta;
  if (!args.c_dtype.has_value()) args.c_dtype = args.dtype;
  if (!args.b_dtype.has_value()) args.b_dtype = args.dtype;
  const DType a = args.dtype, b = *args.b_dtype, c = *args.c_dtype;
  if (IsFloat8(a)) {
    CHECK(IsFloat8(b) && !IsFloat8(c) &&
          (a == DType::kFloat8E4M3 || b == DType::kFloat8E4M3))
        << "Gemm of " << Name(a) << " and " << Name(b) << " into " << Name(c);
    CHECK(!args.transpose_a && args.transpose_b && args.lda == k &&
          args.ldb == k && args.a_scale != nullptr && args.b_scale != nullptr)
        << "Gemm of " << Name(a) << " wants a b^T, adjacent rows and scales";
    CHECK(n % 16 == 0 && k % 16 == 0)
        << "Gemm of " << Name(a) << ": " << m << " x " << n << " x " << k
        << ", wanted multiples of 16";
  } else {
    CHECK(a == b && (c == a || c == AccumulatorOf(a)))
        << "Gemm of " << Name(a) << " and " << Name(b) << " into " << Name(c);
  }
  if (HasEpilogue(args)) {
    CHECK(args.beta == 0 && args.ldc == n && (c == a || IsFloat8(a)))
        << "Gemm: an epilogue wants beta 0, adjacent rows and c of dtype";
  }
  CHECK(args.z == nullptr || args.activation != Activation::kIdentity)
      << "Gemm: without an activation z is c";
  return args;
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_GEMM_GEMM_CHECKED_H_
