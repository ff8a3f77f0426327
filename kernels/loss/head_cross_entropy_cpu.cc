#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/parallel.h"
#include "kernels/base/vec_math.h"
#include "kernels/gemm/gemm.h"
#include "kernels/loss/head_cross_entropy.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {
namespace {

// log sum_v exp(z[v]); partial sums of a block in T, of the row in double.
template <typename T>
T LogSumExp(const T* z, int64_t vocab) {
  T max = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : max)
  for (int64_t v = 0; v < vocab; ++v) max = std::max(max, z[v]);
  constexpr int64_t kBlock = 512;
  double sum = 0;
  for (int64_t begin = 0; begin < vocab; begin += kBlock) {
    const int64_t end = std::min(vocab, begin + kBlock);
    T block = 0;
#pragma omp simd reduction(+ : block)
    for (int64_t v = begin; v < end; ++v) block += Exp(z[v] - max);
    sum += block;
  }
  return static_cast<T>(max + std::log(sum));
}

// z = dloss * exp(z - lse)
template <typename T>
void ScaledSoftmax(T lse, T dloss, int64_t vocab, T* z) {
#pragma omp simd
  for (int64_t v = 0; v < vocab; ++v) z[v] = dloss * Exp(z[v] - lse);
}

// The labelled rows, `chunk` at a time, packed into the workspace.
template <typename T>
class Chunks {
 public:
  template <typename Args>
  explicit Chunks(const Args& args)
      : x_(static_cast<const T*>(args.x)),
        labels_(args.labels),
        tokens_(args.tokens),
        hidden_(args.hidden),
        vocab_(args.vocab),
        chunk_(args.chunk),
        row_tokens_(static_cast<int64_t*>(args.workspace)),
        x_rows_(reinterpret_cast<T*>(row_tokens_ + chunk_)),
        logits_(x_rows_ + chunk_ * hidden_) {}

  // Packs the next rows; false when there are none.
  bool Next() {
    for (rows_ = 0; rows_ < chunk_ && next_ < tokens_; ++next_) {
      CHECK_LT(labels_[next_], vocab_) << "label of token " << next_;
      if (labels_[next_] >= 0) row_tokens_[rows_++] = next_;
    }
    ParallelFor(rows_, RowGrain(hidden_), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        std::copy_n(x_ + token(r) * hidden_, hidden_, x_rows_ + r * hidden_);
    });
    return rows_ > 0;
  }

  void ComputeLogits(const void* weight, Stream stream) const {
    Gemm({.a = x_rows_,
          .b = weight,
          .c = logits_,
          .m = rows_,
          .n = vocab_,
          .k = hidden_,
          .transpose_b = true,
          .dtype = DTypeOf<T>::value},
         stream);
  }

  int64_t rows() const { return rows_; }
  int64_t token(int64_t row) const { return row_tokens_[row]; }
  int32_t label(int64_t row) const { return labels_[token(row)]; }
  T* x_rows() const { return x_rows_; }  // [rows, H]
  T* logits() const { return logits_; }  // [rows, V]
  T* logits(int64_t row) const { return logits_ + row * vocab_; }

 private:
  const T* x_;
  const int32_t* labels_;
  const int64_t tokens_, hidden_, vocab_, chunk_;
  int64_t* row_tokens_;  // [chunk]
  T* x_rows_;            // [chunk, H]
  T* logits_;            // [chunk, V]
  int64_t next_ = 0, rows_ = 0;
};

template <typename T>
void Forward(const HeadCrossEntropyForwardArgs& args, Stream stream) {
  Chunks<T> chunks(args);
  T* lse = static_cast<T*>(args.lse);
  double loss = 0;
  while (chunks.Next()) {
    chunks.ComputeLogits(args.weight, stream);
    ParallelFor(
        chunks.rows(), RowGrain(args.vocab), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r)
            lse[chunks.token(r)] = LogSumExp(chunks.logits(r), args.vocab);
        });
    for (int64_t r = 0; r < chunks.rows(); ++r)
      loss += double{lse[chunks.token(r)]} - chunks.logits(r)[chunks.label(r)];
  }
  *args.loss = loss;
}

template <typename T>
void Backward(const HeadCrossEntropyBackwardArgs& args, Stream stream) {
  Chunks<T> chunks(args);
  const int64_t hidden = args.hidden;
  const T* lse = static_cast<const T*>(args.lse);
  const T dloss = static_cast<T>(*args.dloss);
  T* dx = static_cast<T*>(args.dx);
  if (dx != nullptr) {
    ParallelFor(args.tokens, RowGrain(hidden), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        if (args.labels[t] < 0) std::fill_n(dx + t * hidden, hidden, T{0});
    });
  }
  GemmArgs dweight = {.a = chunks.logits(),
                      .b = chunks.x_rows(),
                      .c = args.dweight,
                      .m = args.vocab,
                      .n = hidden,
                      .k = 0,
                      .transpose_a = true,
                      .beta = args.dweight_beta,
                      .dtype = args.dtype};
  while (chunks.Next()) {
    chunks.ComputeLogits(args.weight, stream);
    ParallelFor(chunks.rows(), RowGrain(args.vocab),
                [&](int64_t begin, int64_t end) {
                  for (int64_t r = begin; r < end; ++r) {
                    ScaledSoftmax(lse[chunks.token(r)], dloss, args.vocab,
                                  chunks.logits(r));
                    chunks.logits(r)[chunks.label(r)] -= dloss;
                  }
                });
    if (args.dweight != nullptr) {
      dweight.k = chunks.rows();
      Gemm(dweight, stream);
      dweight.beta = 1;
    }
    if (dx != nullptr) {
      // x's packed rows are done with; their gradient takes the place.
      Gemm({.a = chunks.logits(),
            .b = args.weight,
            .c = chunks.x_rows(),
            .m = chunks.rows(),
            .n = hidden,
            .k = args.vocab,
            .dtype = args.dtype},
           stream);
      ParallelFor(chunks.rows(), RowGrain(hidden),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t r = begin; r < end; ++r) {
                      std::copy_n(chunks.x_rows() + r * hidden, hidden,
                                  dx + chunks.token(r) * hidden);
                    }
                  });
    }
  }
  // No labelled token: only beta.
  if (args.dweight != nullptr && dweight.k == 0) Gemm(dweight, stream);
}

template <typename Args>
void Check(const Args& args) {
  CHECK(args.tokens >= 0 && args.hidden > 0 && args.vocab > 0);
  CHECK_GT(args.chunk, 0);
  CHECK(args.workspace != nullptr);
}

}  // namespace

void HeadCrossEntropyForward(const HeadCrossEntropyForwardArgs& args,
                             Stream stream) {
  Check(args);
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Forward<T>(args, stream); });
}

void HeadCrossEntropyBackward(const HeadCrossEntropyBackwardArgs& args,
                              Stream stream) {
  Check(args);
  DispatchCpuFloat(args.dtype,
                   [&]<typename T>() { Backward<T>(args, stream); });
}

int64_t HeadCrossEntropyWorkspaceBytes(int64_t chunk, int64_t hidden,
                                       int64_t vocab, DType dtype) {
  return chunk * (static_cast<int64_t>(sizeof(int64_t)) +
                  (hidden + vocab) * SizeOf(dtype));
}

}  // namespace mimo::kernels
