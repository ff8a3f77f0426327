#include <algorithm>

#include "kernels/base/cuda.cuh"
#include "kernels/gemm/gemm.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/head_cross_entropy.h"
#include "kernels/loss/head_pass.h"
#include "kernels/reduce/sum_doubles.cuh"

namespace mimo::kernels {
namespace {

// Rows [begin, begin + rows) of the pass, their logits in the workspace.
class Chunk {
 public:
  Chunk(const HeadPass& pass, int64_t begin, Stream stream)
      : pass_(pass),
        args_(pass.args),
        begin_(begin),
        rows_(std::min(args_.chunk, args_.tokens - begin)),
        loss_(static_cast<double*>(args_.workspace)),
        lse_(loss_ + args_.chunk),
        logits_(lse_ + args_.chunk),
        dlogits_(args_.logits_dtype == args_.dtype
                     ? logits_
                     : static_cast<char*>(logits_) +
                           CeilDiv(args_.chunk * args_.vocab *
                                       SizeOf(args_.logits_dtype),
                                   16) *
                               16),
        stream_(stream) {
    if (pass.lse != nullptr) lse_ = pass.lse + begin_;
  }

  void Run() const {
    Gemm({.a = Row(args_.x),
          .b = args_.weight,
          .c = logits_,
          .m = rows_,
          .n = args_.vocab,
          .k = args_.hidden,
          .transpose_b = true,
          .dtype = args_.dtype,
          .c_dtype = args_.logits_dtype},
         stream_);
    CrossEntropy();
    if (pass_.forward()) AddLoss();
    if (args_.dweight != nullptr) {
      Gemm({.a = dlogits_,
            .b = Row(args_.x),
            .c = args_.dweight,
            .m = args_.vocab,
            .n = args_.hidden,
            .k = rows_,
            .transpose_a = true,
            .beta = begin_ == 0 ? args_.dweight_beta : 1,
            .dtype = args_.dtype,
            .c_dtype = DType::kFloat32},
           stream_);
    }
    if (args_.dx != nullptr) {
      Gemm({.a = dlogits_,
            .b = args_.weight,
            .c = const_cast<void*>(Row(args_.dx)),
            .m = rows_,
            .n = args_.hidden,
            .k = args_.vocab,
            .dtype = args_.dtype},
           stream_);
    }
  }

 private:
  const void* Row(const void* matrix) const {  // of [T, H] dtype
    return static_cast<const char*>(matrix) +
           begin_ * args_.hidden * SizeOf(args_.dtype);
  }

  void CrossEntropy() const {
    const int32_t* labels = args_.labels + begin_;
    const VocabularyPart* part = args_.part;
    if (pass_.forward() && pass_.backward() && part == nullptr) {
      CrossEntropyForwardBackward({.logits = logits_,
                                   .dlogits = dlogits_,
                                   .labels = labels,
                                   .loss = loss_,
                                   .dloss = args_.dloss,
                                   .tokens = rows_,
                                   .vocab = args_.vocab,
                                   .dtype = args_.logits_dtype,
                                   .dlogits_dtype = args_.dtype},
                                  stream_);
      return;
    }
    const int64_t first = part == nullptr ? 0 : part->first;
    if (pass_.forward()) {
      CrossEntropyForward({.logits = logits_,
                           .labels = labels,
                           .lse = lse_,
                           .loss = loss_,
                           .tokens = rows_,
                           .vocab = args_.vocab,
                           .first = first,
                           .part = part != nullptr,
                           .dtype = args_.logits_dtype},
                          stream_);
      if (part != nullptr) part->join(labels, lse_, loss_, rows_);
    }
    if (pass_.backward()) {
      CrossEntropyBackward({.logits = logits_,
                            .dlogits = dlogits_,
                            .labels = labels,
                            .lse = lse_,
                            .dloss = args_.dloss,
                            .tokens = rows_,
                            .vocab = args_.vocab,
                            .first = first,
                            .part = part != nullptr,
                            .dtype = args_.logits_dtype,
                            .dlogits_dtype = args_.dtype},
                           stream_);
    }
  }

  void AddLoss() const;

  const HeadPass& pass_;
  const HeadCrossEntropyForwardBackwardArgs& args_;
  const int64_t begin_, rows_;
  double* const loss_;   // [chunk]
  double* lse_;          // [chunk], or the rows' of the pass
  void* const logits_;   // [chunk, V] logits_dtype
  void* const dlogits_;  // [chunk, V] dtype; logits_ if that is logits_dtype
  const Stream stream_;
};

struct AddTo {
  double* loss;
  bool first;
  __device__ void operator()(double sum) const {
    *loss = (first ? 0 : *loss) + sum;
  }
};
void Chunk::AddLoss() const {
  SumDoubles(loss_, rows_, AddTo{args_.loss, begin_ == 0}, stream_);
}

template <typename Args>
void RunOn(const Args& args, Stream stream) {
  const HeadPass pass = PassOf(args);
  // One chunk of no rows where there is no token: only beta, and no loss.
  for (int64_t begin = 0; begin == 0 || begin < args.tokens;
       begin += args.chunk)
    Chunk(pass, begin, stream).Run();
}

}  // namespace

void HeadCrossEntropyForwardCuda(const HeadCrossEntropyForwardArgs& args,
                                 Stream stream) {
  RunOn(args, stream);
}

void HeadCrossEntropyBackwardCuda(const HeadCrossEntropyBackwardArgs& args,
                                  Stream stream) {
  RunOn(args, stream);
}

void HeadCrossEntropyForwardBackwardCuda(
    const HeadCrossEntropyForwardBackwardArgs& args, Stream stream) {
  RunOn(args, stream);
}

}  // namespace mimo::kernels
