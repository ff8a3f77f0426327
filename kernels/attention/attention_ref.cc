#include "kernels/attention/attention_ref.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/visible_keys.h"
#include "kernels/base/parallel.h"

namespace mimo::kernels {
namespace {

double Dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t d = 0; d < n; ++d) sum += a[d] * b[d];
  return sum;
}

// y += a x
void AddScaled(double a, const double* x, int64_t n, double* y) {
  for (int64_t d = 0; d < n; ++d) y[d] += a * x[d];
}

}  // namespace

void AttentionForwardRef(const AttentionForwardArgs& args) {
  const AttentionShape& s = args.shape;
  const int64_t dim = s.head_dim;
  ParallelFor(s.batch * s.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> z(s.seq_k);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / s.heads, n = task % s.heads;
      const Sample sample = SampleOf(s, args.key_lengths, args.cu_seqlens, b);
      const int64_t kv =
          KeyOffset(sample, b, args.kv_stride, args.kv_batch_stride) +
          n / (s.heads / s.kv_heads) * dim;
      const double* k = static_cast<const double*>(args.k) + kv;
      const double* v = static_cast<const double*>(args.v) + kv;
      for (int64_t i = 0; i < sample.queries; ++i) {
        const int64_t row = sample.first_query + i;
        const double* q =
            static_cast<const double*>(args.q) + row * args.q_stride + n * dim;
        double* out =
            static_cast<double*>(args.out) + (row * s.heads + n) * dim;
        const int64_t keys = sample.VisibleKeys(i);
        double largest = -std::numeric_limits<double>::infinity();
        for (int64_t j = 0; j < keys; ++j) {
          z[j] = s.scale * Dot(q, k + j * args.kv_stride, dim);
          largest = std::fmax(largest, z[j]);
        }
        double sum = 0;
        for (int64_t j = 0; j < keys; ++j) sum += std::exp(z[j] - largest);
        const double lse = largest + std::log(sum);
        static_cast<double*>(args.lse)[task * s.seq_q + i] = lse;
        for (int64_t d = 0; d < dim; ++d) out[d] = 0;
        for (int64_t j = 0; j < keys; ++j)
          AddScaled(std::exp(z[j] - lse), v + j * args.kv_stride, dim, out);
      }
    }
  });
}

void AttentionBackwardRef(const AttentionBackwardArgs& args) {
  const AttentionShape& s = args.shape;
  const int64_t dim = s.head_dim, ratio = s.heads / s.kv_heads;
  ParallelFor(s.batch * s.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / s.kv_heads, g = task % s.kv_heads;
      const Sample sample = SampleOf(s, args.key_lengths, args.cu_seqlens, b);
      const int64_t kv = sample.first_key * args.kv_stride + g * dim;
      const int64_t dkv = sample.first_key * args.dkv_stride + g * dim;
      const double* k = static_cast<const double*>(args.k) + kv;
      const double* v = static_cast<const double*>(args.v) + kv;
      double* dk = static_cast<double*>(args.dk) + dkv;
      double* dv = static_cast<double*>(args.dv) + dkv;
      for (int64_t j = 0; j < sample.rows_k; ++j) {
        for (int64_t d = 0; d < dim; ++d)
          dk[j * args.dkv_stride + d] = dv[j * args.dkv_stride + d] = 0;
      }
      for (int64_t n = g * ratio; n < (g + 1) * ratio; ++n) {
        for (int64_t i = 0; i < sample.queries; ++i) {
          const int64_t row = sample.first_query + i;
          const int64_t o = (row * s.heads + n) * dim;
          const double* q = static_cast<const double*>(args.q) +
                            row * args.q_stride + n * dim;
          const double* dout = static_cast<const double*>(args.dout) + o;
          const double lse = static_cast<const double*>(
              args.lse)[(b * s.heads + n) * s.seq_q + i];
          const double delta =
              Dot(dout, static_cast<const double*>(args.out) + o, dim);
          double* dq =
              static_cast<double*>(args.dq) + row * args.dq_stride + n * dim;
          for (int64_t d = 0; d < dim; ++d) dq[d] = 0;
          const int64_t keys = sample.VisibleKeys(i);
          for (int64_t j = 0; j < keys; ++j) {
            const double* kj = k + j * args.kv_stride;
            const double p = std::exp(s.scale * Dot(q, kj, dim) - lse);
            const double dz =
                p * (Dot(dout, v + j * args.kv_stride, dim) - delta);
            AddScaled(s.scale * dz, kj, dim, dq);
            AddScaled(s.scale * dz, q, dim, dk + j * args.dkv_stride);
            AddScaled(p, dout, dim, dv + j * args.dkv_stride);
          }
        }
      }
    }
  });
}

}  // namespace mimo::kernels
