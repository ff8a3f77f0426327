// The float32 path: tiles of queries and keys, their products by Gemm.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_ref.h"
#include "kernels/attention/turn_back.h"
#include "kernels/attention/visible_keys.h"
#include "kernels/base/parallel.h"
#include "kernels/base/vec_math.h"
#include "kernels/gemm/gemm.h"

namespace mimo::kernels {
namespace {

constexpr int64_t kQueryTile = 64;
constexpr int64_t kKeyTile = 128;
using Tile = float[kQueryTile * kKeyTile];  // rows of kKeyTile

struct Matrix {
  const float* data;
  int64_t stride;
};

// c[M, N] = op(a) op(b) + beta c, inside the calling thread.
void Product(Matrix a, bool transpose_a, Matrix b, bool transpose_b, float beta,
             float* c, int64_t ldc, int64_t m, int64_t n, int64_t k) {
  Gemm({.a = a.data,
        .b = b.data,
        .c = c,
        .m = m,
        .n = n,
        .k = k,
        .transpose_a = transpose_a,
        .transpose_b = transpose_b,
        .lda = a.stride,
        .ldb = b.stride,
        .ldc = ldc,
        .beta = beta,
        .dtype = DType::kFloat32},
       {});
}

// y[d, j] = a * x[j, d] of a tile of keys; y has rows of kKeyTile. The forward
// gains 8 %: small products are fastest when neither side is transposed.
void Transpose(float a, Matrix x, int64_t keys, int64_t dim, float* y) {
  constexpr int64_t kBlock = 8;
  int64_t j = 0;
  for (; j + kBlock <= keys; j += kBlock) {
    const float* from = x.data + j * x.stride;
    for (int64_t d = 0; d < dim; ++d) {
      for (int64_t l = 0; l < kBlock; ++l)
        y[d * kKeyTile + j + l] = a * from[l * x.stride + d];
    }
  }
  for (; j < keys; ++j) {
    for (int64_t d = 0; d < dim; ++d)
      y[d * kKeyTile + j] = a * x.data[j * x.stride + d];
  }
}

// Rows are worked on in whole vectors: up to the next multiple of this.
constexpr int64_t kLanes = 16;
static_assert(kKeyTile % kLanes == 0);
int64_t RoundUp(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// One step of the online softmax for a row of products: z becomes exp(z - max)
// of its first `visible` keys and 0 up to `keys`; max and sum are updated.
// Returns exp(old max - new max), by which what was summed before shrinks.
float SoftmaxStep(int64_t visible, int64_t keys, float* z, float& max,
                  float& sum) {
  const int64_t width = RoundUp(visible);
  std::fill(z + visible, z + width, -std::numeric_limits<float>::infinity());
  std::fill(z + width, z + std::max(keys, width), 0.0f);
  if (visible == 0) return 1;
  float largest = max;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < width; ++j) largest = std::max(largest, z[j]);
  float row_sum = 0;
#pragma omp simd reduction(+ : row_sum)
  for (int64_t j = 0; j < width; ++j) {
    z[j] = Exp(z[j] - largest);
    row_sum += z[j];
  }
  const float shrink = Exp(max - largest);
  max = largest;
  sum = sum * shrink + row_sum;
  return shrink;
}

// Queries [i0, i0 + rows) of head n of sample b.
void ForwardTile(const AttentionForwardArgs& args, const Sample& sample,
                 int64_t b, int64_t n, int64_t i0, int64_t rows, float* kt) {
  const AttentionShape& s = args.shape;
  const int64_t dim = s.head_dim, out_stride = s.heads * dim;
  const int64_t kv =
      KeyOffset(sample, b, args.kv_stride, args.kv_batch_stride) +
      n / (s.heads / s.kv_heads) * dim;
  const int64_t row = sample.first_query + i0;
  const float* q =
      static_cast<const float*>(args.q) + row * args.q_stride + n * dim;
  float* out = static_cast<float*>(args.out) + row * out_stride + n * dim;
  float* lse = static_cast<float*>(args.lse) + (b * s.heads + n) * s.seq_q + i0;
  const float scale = static_cast<float>(s.scale);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();

  alignas(64) Tile z;
  float max[kQueryTile], sum[kQueryTile];
  std::fill_n(max, rows, -kInfinity);
  std::fill_n(sum, rows, 0.0f);
  const int64_t all_keys = sample.VisibleKeys(i0 + rows - 1);
  for (int64_t j0 = 0; j0 < all_keys; j0 += kKeyTile) {
    const int64_t keys = std::min(kKeyTile, all_keys - j0);
    const int64_t at = kv + j0 * args.kv_stride;
    Transpose(scale, {static_cast<const float*>(args.k) + at, args.kv_stride},
              keys, dim, kt);
    Product({q, args.q_stride}, false, {kt, kKeyTile}, false, 0, z, kKeyTile,
            rows, keys, dim);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t visible =
          std::clamp<int64_t>(sample.VisibleKeys(i0 + i) - j0, 0, keys);
      const float shrink =
          SoftmaxStep(visible, keys, z + i * kKeyTile, max[i], sum[i]);
      if (j0 > 0 && shrink != 1) {
        float* o = out + i * out_stride;
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) o[d] *= shrink;
      }
    }
    Product({z, kKeyTile}, false,
            {static_cast<const float*>(args.v) + at, args.kv_stride}, false,
            j0 > 0, out, out_stride, rows, dim, keys);
  }
  for (int64_t i = 0; i < rows; ++i) {
    float* o = out + i * out_stride;
    lse[i] = max[i] + std::log(sum[i]);
    if (sum[i] == 0) {  // saw no key
      std::fill_n(o, dim, 0.0f);
      continue;
    }
    const float inverse = 1 / sum[i];
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) o[d] *= inverse;
  }
}

void Forward(const AttentionForwardArgs& args) {
  const AttentionShape& s = args.shape;
  const int64_t tiles = (s.seq_q + kQueryTile - 1) / kQueryTile;
  ParallelFor(s.batch * s.heads * tiles, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> kt(s.head_dim * kKeyTile);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / (s.heads * tiles);
      const int64_t n = task / tiles % s.heads;
      // Later queries see more keys: they come first, for an even load.
      const int64_t i0 = (tiles - 1 - task % tiles) * kQueryTile;
      const Sample sample = SampleOf(s, args.key_lengths, args.cu_seqlens, b);
      const int64_t rows = std::min(kQueryTile, sample.queries - i0);
      if (rows > 0) ForwardTile(args, sample, b, n, i0, rows, kt.data());
    }
  });
}

// The pair of a tile of queries and a tile of keys of one head; dq, dk and dv
// are added to. Pointers are to the tiles' first rows.
struct BackwardTile {
  Matrix q, k, v, out, dout;
  const float* lse;
  float *dq, *dk, *dv;
  int64_t dq_stride, dkv_stride;
  int64_t rows, keys, dim;
  float scale;

  // visible(i): keys that row i sees.
  template <typename F>
  void Run(F&& visible) const {
    alignas(64) Tile p, dz;
    Product(q, false, k, true, 0, p, kKeyTile, rows, keys, dim);
    Product(dout, false, v, true, 0, dz, kKeyTile, rows, keys, dim);
    for (int64_t i = 0; i < rows; ++i) {
      const float* o = out.data + i * out.stride;
      const float* d_o = dout.data + i * dout.stride;
      float delta = 0;
#pragma omp simd reduction(+ : delta)
      for (int64_t d = 0; d < dim; ++d) delta += d_o[d] * o[d];
      float* p_row = p + i * kKeyTile;
      float* dz_row = dz + i * kKeyTile;
      const int64_t seen = visible(i);
#pragma omp simd
      for (int64_t j = 0; j < seen; ++j) {
        p_row[j] = Exp(scale * p_row[j] - lse[i]);
        dz_row[j] = scale * p_row[j] * (dz_row[j] - delta);
      }
      std::fill(p_row + seen, p_row + keys, 0.0f);
      std::fill(dz_row + seen, dz_row + keys, 0.0f);
    }
    Product({p, kKeyTile}, true, dout, false, 1, dv, dkv_stride, keys, dim,
            rows);
    Product({dz, kKeyTile}, true, q, false, 1, dk, dkv_stride, keys, dim, rows);
    Product({dz, kKeyTile}, false, k, false, 1, dq, dq_stride, rows, dim, keys);
  }
};

void Zero(float* x, int64_t stride, int64_t rows, int64_t dim) {
  for (int64_t i = 0; i < rows; ++i) std::fill_n(x + i * stride, dim, 0.0f);
}

// Group g of sample b: its heads in order, so that dk and dv have one writer.
void BackwardGroup(const AttentionBackwardArgs& args, int64_t b, int64_t g) {
  const AttentionShape& s = args.shape;
  const int64_t dim = s.head_dim, ratio = s.heads / s.kv_heads;
  const int64_t out_stride = s.heads * dim;
  const Sample sample = SampleOf(s, args.key_lengths, args.cu_seqlens, b);
  const int64_t kv = sample.first_key * args.kv_stride + g * dim;
  const int64_t dkv = sample.first_key * args.dkv_stride + g * dim;
  float* dk = static_cast<float*>(args.dk) + dkv;
  float* dv = static_cast<float*>(args.dv) + dkv;
  Zero(dk, args.dkv_stride, sample.rows_k, dim);
  Zero(dv, args.dkv_stride, sample.rows_k, dim);
  for (int64_t n = g * ratio; n < (g + 1) * ratio; ++n) {
    const int64_t row = sample.first_query;
    float* dq = static_cast<float*>(args.dq) + row * args.dq_stride + n * dim;
    Zero(dq, args.dq_stride, sample.queries, dim);
    for (int64_t j0 = 0; j0 < sample.keys; j0 += kKeyTile) {
      for (int64_t i0 = 0; i0 < sample.queries; i0 += kQueryTile) {
        const int64_t rows = std::min(kQueryTile, sample.queries - i0);
        const auto visible = [&](int64_t i) {
          return std::clamp<int64_t>(sample.VisibleKeys(i0 + i) - j0, 0,
                                     kKeyTile);
        };
        const int64_t keys = visible(rows - 1);
        if (keys == 0) continue;
        const int64_t at = kv + j0 * args.kv_stride;
        const int64_t q = (row + i0) * args.q_stride + n * dim;
        const int64_t o = (row + i0) * out_stride + n * dim;
        BackwardTile{
            .q = {static_cast<const float*>(args.q) + q, args.q_stride},
            .k = {static_cast<const float*>(args.k) + at, args.kv_stride},
            .v = {static_cast<const float*>(args.v) + at, args.kv_stride},
            .out = {static_cast<const float*>(args.out) + o, out_stride},
            .dout = {static_cast<const float*>(args.dout) + o, out_stride},
            .lse = static_cast<const float*>(args.lse) +
                   (b * s.heads + n) * s.seq_q + i0,
            .dq = dq + i0 * args.dq_stride,
            .dk = dk + j0 * args.dkv_stride,
            .dv = dv + j0 * args.dkv_stride,
            .dq_stride = args.dq_stride,
            .dkv_stride = args.dkv_stride,
            .rows = rows,
            .keys = keys,
            .dim = dim,
            .scale = static_cast<float>(s.scale)}
            .Run(visible);
      }
    }
  }
}

void Backward(const AttentionBackwardArgs& args) {
  const AttentionShape& s = args.shape;
  ParallelFor(s.batch * s.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      BackwardGroup(args, task / s.kv_heads, task % s.kv_heads);
  });
}

void Check(const AttentionShape& s, int64_t q_stride, int64_t kv_stride) {
  CHECK(s.batch >= 0 && s.seq_q >= 0 && s.seq_k >= 0);
  CHECK(s.heads > 0 && s.kv_heads > 0 && s.head_dim > 0);
  CHECK_EQ(s.heads % s.kv_heads, 0) << "Attention: heads by groups";
  CHECK_GE(q_stride, s.heads * s.head_dim);
  CHECK_GE(kv_stride, s.kv_heads * s.head_dim);
}

}  // namespace

void AttentionForwardCpu(const AttentionForwardArgs& args) {
  Check(args.shape, args.q_stride, args.kv_stride);
  args.dtype == DType::kFloat64 ? AttentionForwardRef(args) : Forward(args);
}

void AttentionBackwardCpu(const AttentionBackwardArgs& args) {
  Check(args.shape, args.q_stride, args.kv_stride);
  Check(args.shape, args.dq_stride, args.dkv_stride);
  args.dtype == DType::kFloat64 ? AttentionBackwardRef(args) : Backward(args);
  TurnBack(args, Stream());
}

}  // namespace mimo::kernels
