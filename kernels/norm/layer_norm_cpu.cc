#include <algorithm>
#include <cmath>

#include "kernels/base/parallel.h"
#include "kernels/norm/layer_norm.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {
namespace {

template <typename T>
void Forward(const LayerNormForwardArgs& args) {
  const int64_t hidden = args.hidden;
  const T count = static_cast<T>(hidden);
  const T* weight = static_cast<const T*>(args.weight);
  const T* bias = static_cast<const T*>(args.bias);
  ParallelFor(args.tokens, RowGrain(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* s = static_cast<const T*>(args.x) + t * hidden;
      T* y = static_cast<T*>(args.y) + t * hidden;
      T total = 0;
      if (args.residual != nullptr) {
        const T* x = s;
        const T* residual = static_cast<const T*>(args.residual) + t * hidden;
        T* sum = static_cast<T*>(args.sum) + t * hidden;
#pragma omp simd reduction(+ : total)
        for (int64_t h = 0; h < hidden; ++h) {
          const T v = x[h] + residual[h];
          sum[h] = v;
          total += v;
        }
        s = sum;
      } else {
#pragma omp simd reduction(+ : total)
        for (int64_t h = 0; h < hidden; ++h) total += s[h];
      }
      const T mean = total / count;
      T squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t h = 0; h < hidden; ++h)
        squares += (s[h] - mean) * (s[h] - mean);
      const T rstd = 1 / std::sqrt(squares / count + static_cast<T>(args.eps));
      static_cast<T*>(args.mean)[t] = mean;
      static_cast<T*>(args.rstd)[t] = rstd;
#pragma omp simd
      for (int64_t h = 0; h < hidden; ++h)
        y[h] = (s[h] - mean) * rstd * weight[h] + bias[h];
    }
  });
}

// One row; dweight and dbias may be null.
template <typename T>
void BackwardRow(const T* s, const T* weight, T mean, T rstd, const T* dy,
                 T* dx, bool accumulate_dx, T* dweight, T* dbias,
                 int64_t hidden) {
  if (dweight != nullptr) {
#pragma omp simd
    for (int64_t h = 0; h < hidden; ++h)
      dweight[h] += dy[h] * ((s[h] - mean) * rstd);
  }
  if (dbias != nullptr) {
#pragma omp simd
    for (int64_t h = 0; h < hidden; ++h) dbias[h] += dy[h];
  }
  if (dx == nullptr) return;
  T total = 0, dot = 0;
#pragma omp simd reduction(+ : total, dot)
  for (int64_t h = 0; h < hidden; ++h) {
    const T g = weight[h] * dy[h];
    total += g;
    dot += g * ((s[h] - mean) * rstd);
  }
  total /= static_cast<T>(hidden);
  dot /= static_cast<T>(hidden);
  if (accumulate_dx) {
#pragma omp simd
    for (int64_t h = 0; h < hidden; ++h)
      dx[h] += rstd * (weight[h] * dy[h] - total - (s[h] - mean) * rstd * dot);
  } else {
#pragma omp simd
    for (int64_t h = 0; h < hidden; ++h)
      dx[h] = rstd * (weight[h] * dy[h] - total - (s[h] - mean) * rstd * dot);
  }
}

template <typename T>
void Backward(const LayerNormBackwardArgs& args) {
  const int64_t hidden = args.hidden;
  const int64_t chunks = RowChunks(args.tokens);
  const T* x = static_cast<const T*>(args.x);
  const T* mean = static_cast<const T*>(args.mean);
  const T* rstd = static_cast<const T*>(args.rstd);
  const T* dy = static_cast<const T*>(args.dy);
  T* dx = static_cast<T*>(args.dx);
  T* dweights = static_cast<T*>(args.workspace);  // [chunks, H], dbiases too
  T* dbiases = dweights + chunks * hidden;
  ForRowChunks(
      args.tokens, hidden, [&](int64_t chunk, int64_t begin, int64_t end) {
        T *dweight = nullptr, *dbias = nullptr;
        if (args.dweight != nullptr) {
          dweight = dweights + chunk * hidden;
          std::fill_n(dweight, hidden, T{0});
        }
        if (args.dbias != nullptr) {
          dbias = dbiases + chunk * hidden;
          std::fill_n(dbias, hidden, T{0});
        }
        for (int64_t t = begin; t < end; ++t) {
          BackwardRow(x + t * hidden, static_cast<const T*>(args.weight),
                      mean[t], rstd[t], dy + t * hidden,
                      dx == nullptr ? nullptr : dx + t * hidden,
                      args.accumulate_dx, dweight, dbias, hidden);
        }
      });
  if (args.dweight != nullptr) {
    SumRowChunks(dweights, chunks, hidden, args.dweight_beta,
                 static_cast<T*>(args.dweight));
  }
  if (args.dbias != nullptr) {
    SumRowChunks(dbiases, chunks, hidden, args.dbias_beta,
                 static_cast<T*>(args.dbias));
  }
}

}  // namespace

void LayerNormForwardCpu(const LayerNormForwardArgs& args) {
  CHECK_GE(args.tokens, 0);
  CHECK_GT(args.hidden, 0);
  CHECK_EQ(args.sum == nullptr, args.residual == nullptr)
      << "LayerNorm: a sum goes with a residual";
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Forward<T>(args); });
}

void LayerNormBackwardCpu(const LayerNormBackwardArgs& args) {
  CHECK_GE(args.tokens, 0);
  CHECK_GT(args.hidden, 0);
  CHECK((args.dweight == nullptr && args.dbias == nullptr) ||
        args.tokens == 0 || args.workspace != nullptr)
      << "LayerNorm: dweight and dbias need a workspace";
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Backward<T>(args); });
}

int64_t LayerNormBackwardWorkspaceBytes(int64_t tokens, int64_t hidden,
                                        DType dtype, Device device) {
  const int64_t rows =
      device == Device::kCpu ? RowChunks(tokens) : kCudaPartialRows;
  return 2 * rows * hidden * SizeOf(AccumulatorOf(dtype));
}

}  // namespace mimo::kernels
