#include <algorithm>

#include "absl/log/check.h"
#include "kernels/base/parallel.h"
#include "kernels/gemm/gemm.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/head_cross_entropy.h"
#include "kernels/loss/head_pass.h"
#include "kernels/reduce/row_chunks.h"

namespace mimo::kernels {
namespace {

// The labelled rows, `chunk` at a time, packed into the workspace. T is its own
// accumulator, and so the logits' type.
template <typename T>
class Chunks {
 public:
  explicit Chunks(const HeadCrossEntropyForwardBackwardArgs& args)
      : args_(args),
        tokens_(static_cast<int64_t*>(args.workspace)),
        loss_(reinterpret_cast<double*>(tokens_ + args.chunk)),
        lse_(loss_ + args.chunk),
        x_(reinterpret_cast<T*>(lse_ + args.chunk)),
        logits_(x_ + args.chunk * args.hidden),
        labels_(reinterpret_cast<int32_t*>(logits_ + args.chunk * args.vocab)) {
  }

  // Packs the next rows; false when there are none.
  bool Next() {
    for (rows_ = 0; rows_ < args_.chunk && next_ < args_.tokens; ++next_) {
      const int32_t label = args_.labels[next_];
      CHECK(label < args_.vocab || args_.part != nullptr)
          << "label of token " << next_;
      if (label < 0) continue;
      labels_[rows_] = label;
      tokens_[rows_++] = next_;
    }
    CopyRows([&](int64_t r) {
      std::copy_n(static_cast<const T*>(args_.x) + tokens_[r] * args_.hidden,
                  args_.hidden, x_ + r * args_.hidden);
    });
    return rows_ > 0;
  }

  void ComputeLogits() const {
    GemmCpu({.a = x_,
             .b = args_.weight,
             .c = logits_,
             .m = rows_,
             .n = args_.vocab,
             .k = args_.hidden,
             .transpose_b = true,
             .dtype = args_.dtype});
  }

  // x's packed rows are done with; their gradient takes the place.
  void ComputeDx() const {
    GemmCpu({.a = logits_,
             .b = args_.weight,
             .c = x_,
             .m = rows_,
             .n = args_.hidden,
             .k = args_.vocab,
             .dtype = args_.dtype});
    CopyRows([&](int64_t r) {
      std::copy_n(x_ + r * args_.hidden, args_.hidden,
                  static_cast<T*>(args_.dx) + tokens_[r] * args_.hidden);
    });
  }

  int64_t rows() const { return rows_; }
  int64_t token(int64_t row) const { return tokens_[row]; }
  T* x() const { return x_; }                  // [rows, H]
  T* logits() const { return logits_; }        // [rows, V]
  int32_t* labels() const { return labels_; }  // [rows]
  double* lse() const { return lse_; }         // [rows]
  double* loss() const { return loss_; }       // [rows]

 private:
  template <typename F>
  void CopyRows(F copy) const {
    ParallelFor(rows_, RowGrain(args_.hidden), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) copy(r);
    });
  }

  const HeadCrossEntropyForwardBackwardArgs args_;
  int64_t* tokens_;  // [chunk]
  double* loss_;     // [chunk]
  double* lse_;      // [chunk]
  T* x_;             // [chunk, H]
  T* logits_;        // [chunk, V]
  int32_t* labels_;  // [chunk]
  int64_t next_ = 0, rows_ = 0;
};

// dx of ignored rows is 0.
template <typename T>
void ClearIgnored(const HeadCrossEntropyForwardBackwardArgs& args) {
  ParallelFor(args.tokens, RowGrain(args.hidden),
              [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t) {
                  if (args.labels[t] >= 0) continue;
                  std::fill_n(static_cast<T*>(args.dx) + t * args.hidden,
                              args.hidden, T{0});
                }
              });
}

template <typename T>
void Run(const HeadPass& pass) {
  const HeadCrossEntropyForwardBackwardArgs& args = pass.args;
  Chunks<T> chunks(args);
  const int64_t first = args.part == nullptr ? 0 : args.part->first;
  double loss = 0;
  if (args.dx != nullptr) ClearIgnored<T>(args);
  GemmArgs dweight = {.a = chunks.logits(),
                      .b = chunks.x(),
                      .c = args.dweight,
                      .m = args.vocab,
                      .n = args.hidden,
                      .k = 0,
                      .transpose_a = true,
                      .beta = args.dweight_beta,
                      .dtype = args.dtype};
  while (chunks.Next()) {
    chunks.ComputeLogits();
    if (pass.forward()) {
      CrossEntropyForwardCpu({.logits = chunks.logits(),
                              .labels = chunks.labels(),
                              .lse = chunks.lse(),
                              .loss = chunks.loss(),
                              .tokens = chunks.rows(),
                              .vocab = args.vocab,
                              .first = first,
                              .part = args.part != nullptr,
                              .dtype = args.dtype});
      if (args.part != nullptr)
        args.part->join(chunks.labels(), chunks.lse(), chunks.loss(),
                        chunks.rows());
      for (int64_t r = 0; r < chunks.rows(); ++r) {
        if (pass.lse != nullptr) pass.lse[chunks.token(r)] = chunks.lse()[r];
        loss += chunks.loss()[r];
      }
    } else {
      for (int64_t r = 0; r < chunks.rows(); ++r)
        chunks.lse()[r] = pass.lse[chunks.token(r)];
    }
    if (!pass.backward()) continue;
    CrossEntropyBackwardCpu({.logits = chunks.logits(),
                             .dlogits = chunks.logits(),
                             .labels = chunks.labels(),
                             .lse = chunks.lse(),
                             .dloss = args.dloss,
                             .tokens = chunks.rows(),
                             .vocab = args.vocab,
                             .first = first,
                             .part = args.part != nullptr,
                             .dtype = args.dtype,
                             .dlogits_dtype = args.dtype});
    if (args.dweight != nullptr) {
      dweight.k = chunks.rows();
      GemmCpu(dweight);
      dweight.beta = 1;
    }
    if (args.dx != nullptr) chunks.ComputeDx();
  }
  if (pass.forward()) *args.loss = loss;
  // No labelled token: only beta.
  if (args.dweight != nullptr && dweight.k == 0) GemmCpu(dweight);
}

template <typename Args>
void RunOn(const Args& args) {
  const HeadPass pass = PassOf(args);
  DispatchCpuFloat(args.dtype, [&]<typename T>() { Run<T>(pass); });
}

}  // namespace

void HeadCrossEntropyForwardCpu(const HeadCrossEntropyForwardArgs& args) {
  RunOn(args);
}

void HeadCrossEntropyBackwardCpu(const HeadCrossEntropyBackwardArgs& args) {
  RunOn(args);
}

void HeadCrossEntropyForwardBackwardCpu(
    const HeadCrossEntropyForwardBackwardArgs& args) {
  RunOn(args);
}

// CPU: token, loss, lse, x, logits and label of a row; a GPU: loss, lse and
// logits, and dlogits, where they have another dtype, at 16 bytes.
int64_t HeadCrossEntropyWorkspaceBytes(int64_t chunk, int64_t hidden,
                                       int64_t vocab, DType dtype,
                                       DType logits_dtype, Device device) {
  const int64_t size = SizeOf(dtype);
  if (device == Device::kCpu)
    return chunk * (8 + 8 + 8 + (hidden + vocab) * size + 4);
  const int64_t logits = chunk * vocab;
  return chunk * (8 + 8) + logits * SizeOf(logits_dtype) +
         (logits_dtype == dtype ? 0 : 16 + logits * size);
}

}  // namespace mimo::kernels
