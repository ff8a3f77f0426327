#include <algorithm>
#include <cmath>

#include "kernels/base/parallel.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {
namespace {

template <typename T>
void Forward(const RmsNormForwardArgs& args) {
  const int64_t hidden = args.hidden;
  const T* weight = static_cast<const T*>(args.weight);
  ParallelFor(args.tokens, RowGrain(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* s = static_cast<const T*>(args.x) + t * hidden;
      T* y = static_cast<T*>(args.y) + t * hidden;
      T squares = 0;
      if (args.residual != nullptr) {
        const T* x = s;
        const T* residual = static_cast<const T*>(args.residual) + t * hidden;
        T* sum = static_cast<T*>(args.sum) + t * hidden;
#pragma omp simd reduction(+ : squares)
        for (int64_t h = 0; h < hidden; ++h) {
          const T v = x[h] + residual[h];
          sum[h] = v;
          squares += v * v;
        }
        s = sum;
      } else {
#pragma omp simd reduction(+ : squares)
        for (int64_t h = 0; h < hidden; ++h) squares += s[h] * s[h];
      }
      const T rstd = 1 / std::sqrt(squares / static_cast<T>(hidden) +
                                   static_cast<T>(args.eps));
      static_cast<T*>(args.rstd)[t] = rstd;
#pragma omp simd
      for (int64_t h = 0; h < hidden; ++h) y[h] = s[h] * rstd * weight[h];
    }
  });
}

// One row; dweight may be null.
template <typename T>
void BackwardRow(const T* s, const T* weight, T rstd, const T* dy, T* dx,
                 bool accumulate_dx, T* dweight, int64_t hidden) {
  if (dweight != nullptr) {
#pragma omp simd
    for (int64_t h = 0; h < hidden; ++h) dweight[h] += dy[h] * s[h] * rstd;
  }
  if (dx == nullptr) return;
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t h = 0; h < hidden; ++h) dot += weight[h] * dy[h] * s[h];
  const T along = rstd * rstd * dot / static_cast<T>(hidden);
  if (accumulate_dx) {
#pragma omp simd
    for (int64_t h = 0; h < hidden; ++h)
      dx[h] += rstd * (weight[h] * dy[h] - s[h] * along);
  } else {
#pragma omp simd
    for (int64_t h = 0; h < hidden; ++h)
      dx[h] = rstd * (weight[h] * dy[h] - s[h] * along);
  }
}

template <typename T>
void Backward(const RmsNormBackwardArgs& args) {
  const int64_t hidden = args.hidden;
  const T* x = static_cast<const T*>(args.x);
  const T* rstd = static_cast<const T*>(args.rstd);
  const T* dy = static_cast<const T*>(args.dy);
  T* dx = static_cast<T*>(args.dx);
  T* partials = static_cast<T*>(args.workspace);
  ForRowChunks(
      args.tokens, hidden, [&](int64_t chunk, int64_t begin, int64_t end) {
        T* partial = nullptr;
        if (args.dweight != nullptr) {
          partial = partials + chunk * hidden;
          std::fill_n(partial, hidden, T{0});
        }
        for (int64_t t = begin; t < end; ++t) {
          BackwardRow(x + t * hidden, static_cast<const T*>(args.weight),
                      rstd[t], dy + t * hidden,
                      dx == nullptr ? nullptr : dx + t * hidden,
                      args.accumulate_dx, partial, hidden);
        }
      });
  if (args.dweight != nullptr) {
    SumRowChunks(partials, RowChunks(args.tokens), hidden, args.dweight_beta,
                 static_cast<T*>(args.dweight));
  }
}

}  // namespace

void RmsNormForwardCpu(const RmsNormForwardArgs& args) {
  CHECK_GE(args.tokens, 0);
  CHECK_GT(args.hidden, 0);
  CHECK_EQ(args.sum == nullptr, args.residual == nullptr)
      << "RmsNorm: a sum goes with a residual";
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Forward<T>(args); });
}

void RmsNormBackwardCpu(const RmsNormBackwardArgs& args) {
  CHECK_GE(args.tokens, 0);
  CHECK_GT(args.hidden, 0);
  CHECK(args.dweight == nullptr || args.tokens == 0 ||
        args.workspace != nullptr)
      << "RmsNorm: dweight needs a workspace";
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Backward<T>(args); });
}

int64_t RmsNormBackwardWorkspaceBytes(int64_t tokens, int64_t hidden,
                                      DType dtype, Device device) {
  const int64_t rows =
      device == Device::kCpu ? RowChunks(tokens) : kCudaPartialRows;
  return rows * hidden * SizeOf(AccumulatorOf(dtype));
}

}  // namespace mimo::kernels
