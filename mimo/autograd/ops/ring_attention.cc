#include "mimo/autograd/ops/ring_attention.h"

#include <array>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/attention/merge_attention.h"
#include "kernels/base/device.h"
#include "kernels/elementwise/add.h"
#include "kernels/elementwise/copy_2d.h"
#include "mimo/autograd/ops/cast.h"
#include "mimo/autograd/ops/collectives.h"

namespace mimo {
namespace {

constexpr int kHalves = 2;

// What forward and backward share: where a rank's rows are and what they see.
struct Ring {
  kernels::AttentionShape chunk;
  Packing packing;
  int64_t rows;  // of a half
  Communicator* cp;

  int ranks() const { return cp->size(); }
  int64_t query_width() const { return chunk.heads * chunk.head_dim; }
  int64_t kv_width() const { return 2 * chunk.kv_heads * chunk.head_dim; }
  const int32_t* lengths() const {
    return packing.defined() ? packing.cu_seqlens.pointer<int32_t>() : nullptr;
  }
  Tensor Half(const Tensor& x, int half) const {
    return x.Rows(half * rows, (half + 1) * rows);
  }

  // The rank whose keys and values are here at a step.
  int Source(int step) const { return (cp->rank() - step + ranks()) % ranks(); }
  // The rank that has this rank's at a step.
  int Holder(int step) const { return (cp->rank() + step) % ranks(); }
  int ChunkOf(int rank, int half) const {
    return half == 0 ? rank : 2 * ranks() - 1 - rank;
  }
  // body(q half, k half, shape) of the halves that see each other: this rank's
  // queries and the keys of `source`.
  template <typename F>
  void ForPairs(int source, F body) const {
    for (int q = 0; q < kHalves; ++q) {
      for (int k = 0; k < kHalves; ++k) {
        const int of_q = ChunkOf(cp->rank(), q), of_k = ChunkOf(source, k);
        if (chunk.causal && of_k > of_q) continue;
        kernels::AttentionShape shape = chunk;
        shape.causal = chunk.causal && of_k == of_q;
        body(q, k, shape);
      }
    }
  }

  // Keys and values out of the fused rows. -> [2R, 2*G*D]
  Tensor KeysAndValues(const Context& ctx, const Tensor& qkv) const {
    Tensor kv = ctx.Empty({kHalves * rows, kv_width()}, qkv.dtype());
    kernels::Copy2d({.src = At(qkv, query_width()),
                     .src_stride = qkv.dim(1),
                     .dst = kv.data(),
                     .dst_stride = kv_width(),
                     .rows = kv.dim(0),
                     .columns = kv_width(),
                     .dtype = qkv.dtype()},
                    ctx.compute);
    return kv;
  }
  static char* At(const Tensor& x, int64_t column) {
    return static_cast<char*>(x.data()) + column * SizeOf(x.dtype());
  }
  // Where the values begin in rows of keys and values.
  void* Values(const Tensor& kv) const { return At(kv, kv_width() / 2); }

  // The transfers by which keys and values go one rank on.
  std::vector<Transfer> Turn(const Tensor& kv, const Tensor& next) const {
    return {{Transfer::kSend, kv.data(), kv.numel(), kv.dtype(), Holder(1)},
            {Transfer::kRecv, next.data(), kv.numel(), kv.dtype(), Source(1)}};
  }

  // The rotary embedding of queries and keys, in place, or its inverse.
  void Rotate(const Context& ctx, const Tensor& qkv, const Rotary& rotary,
              bool inverse) const {
    for (int half = 0; half < kHalves; ++half) {
      Rotary of_half = rotary;
      of_half.seq = chunk.seq_q;
      of_half.first_position = ChunkOf(cp->rank(), half) * chunk.seq_q;
      ApplyRotary(ctx, Half(qkv, half), of_half, chunk.heads + chunk.kv_heads,
                  chunk.head_dim,
                  packing.defined() ? Half(packing.positions, half) : Tensor(),
                  inverse);
    }
  }
};

void Accumulate(const Context& ctx, const Tensor& sum, const Tensor& x) {
  const Tensor y = Cast(ctx, x, sum.dtype());
  kernels::Add({.a = sum.data(),
                .b = y.data(),
                .out = sum.data(),
                .size = sum.numel(),
                .dtype = sum.dtype()},
               ctx.compute);
}

struct RingAttentionNode final : Node {
  Slot qkv_slot, out_slot;
  Ring ring;
  std::optional<Rotary> rotary;
  Saved qkv, out, lse;

  const char* name() const override { return "RingAttention"; }

  void Backward(BackwardContext& ctx) override {
    const Context& exec = ctx.exec();
    const Tensor dout = ctx.Take(out_slot);
    if (!dout.defined()) return;
    const Tensor& x = qkv.get();
    const DType sums = AccumulatorOf(x.dtype());
    const int ranks = ring.ranks();
    Tensor kv = ring.KeysAndValues(exec, x);
    Tensor next = exec.Empty(kv.shape(), kv.dtype());
    const Tensor dq = Tensor::Zeros(
        *exec.allocator, {kHalves * ring.rows, ring.query_width()}, sums);
    Tensor dkv;                  // of this rank's keys and values
    Tensor part, sent, arrived;  // of a step's, the step's before; from others
    for (int step = 0; step <= ranks; ++step) {
      // Beside this step's attention: keys and values go on, and gradients of
      // the step before go home.
      std::vector<Transfer> transfers;
      if (step + 1 < ranks) transfers = ring.Turn(kv, next);
      if (step > 1) {
        sent = std::move(part);
        arrived = exec.Empty(sent.shape(), sums);
        for (const auto& [kind, tensor, peer] :
             {std::tuple(Transfer::kSend, &sent, ring.Source(step - 1)),
              {Transfer::kRecv, &arrived, ring.Holder(step - 1)}})
          transfers.push_back(
              {kind, tensor->data(), tensor->numel(), sums, peer});
      }
      if (!transfers.empty()) {
        WaitFor(exec.comm, exec.compute);
        const ProfileRange range = Meeting(exec, "ring", *ring.cp);
        ring.cp->Exchange(transfers, exec.comm);
      }
      if (step < ranks) {
        part = Tensor::Zeros(*exec.allocator, kv.shape(), sums);
        Step(exec, ring.Source(step), dout, kv, dq, part);
        if (step == 0) dkv = std::move(part);
      }
      WaitFor(exec.compute, exec.comm);
      if (step > 1) Accumulate(exec, dkv, arrived);
      std::swap(kv, next);
    }
    const auto dqkv = ctx.GradFor(qkv_slot, x.shape(), x.dtype());
    CHECK(!dqkv.accumulate)
        << "RingAttention must be the projection's only user";
    Join(exec, dq, dkv, dqkv.buffer);
  }

  // Adds the gradients of this rank's queries and the keys and values of
  // `source`.
  void Step(const Context& exec, int source, const Tensor& dout,
            const Tensor& kv, const Tensor& dq, const Tensor& dkv) const {
    const Tensor& x = qkv.get();
    const DType dtype = x.dtype();
    const Tensor dq_part = exec.Empty({ring.rows, ring.query_width()}, dtype);
    const Tensor dkv_part = exec.Empty({ring.rows, ring.kv_width()}, dtype);
    ring.ForPairs(
        source, [&](int q, int k, const kernels::AttentionShape& shape) {
          const Tensor workspace =
              exec.Empty({kernels::AttentionBackwardWorkspaceBytes(
                             shape, dtype, exec.compute.device)},
                         DType::kUInt8);
          const Tensor keys = ring.Half(kv, k);
          kernels::AttentionBackward({.shape = shape,
                                      .q = ring.Half(x, q).data(),
                                      .k = keys.data(),
                                      .v = ring.Values(keys),
                                      .q_stride = x.dim(1),
                                      .kv_stride = ring.kv_width(),
                                      .cu_seqlens = ring.lengths(),
                                      .out = ring.Half(out.get(), q).data(),
                                      .lse = lse.get().Rows(q, q + 1).data(),
                                      .dout = ring.Half(dout, q).data(),
                                      .dq = dq_part.data(),
                                      .dk = dkv_part.data(),
                                      .dv = ring.Values(dkv_part),
                                      .dq_stride = ring.query_width(),
                                      .dkv_stride = ring.kv_width(),
                                      .workspace = workspace.data(),
                                      .dtype = dtype},
                                     exec.compute);
          Accumulate(exec, ring.Half(dq, q), dq_part);
          Accumulate(exec, ring.Half(dkv, k), dkv_part);
        });
  }

  // The fused gradient, of what went into the rotary embedding.
  void Join(const Context& exec, const Tensor& dq, const Tensor& dkv,
            const Tensor& dqkv) const {
    const auto place = [&](const Tensor& sum, int64_t column) {
      const Tensor part = Cast(exec, sum, dqkv.dtype());
      kernels::Copy2d({.src = part.data(),
                       .src_stride = part.dim(1),
                       .dst = Ring::At(dqkv, column),
                       .dst_stride = dqkv.dim(1),
                       .rows = part.dim(0),
                       .columns = part.dim(1),
                       .dtype = dqkv.dtype()},
                      exec.compute);
    };
    place(dq, 0);
    place(dkv, ring.query_width());
    dqkv.Rows(kHalves * ring.rows, dqkv.dim(0)).Zero();
    if (rotary) ring.Rotate(exec, dqkv, *rotary, /*inverse=*/true);
  }
};

}  // namespace

Var RingAttention(const Context& ctx, const Var& qkv,
                  const kernels::AttentionShape& chunk, Communicator& cp,
                  const Rotary* rotary, const Packing& packing) {
  const Tensor& x = qkv.value;
  const Ring ring = {chunk, packing,
                     packing.defined() ? packing.positions.numel() / kHalves
                                       : chunk.batch * chunk.seq_q,
                     &cp};
  CHECK_GE(x.dim(0), kHalves * ring.rows);
  CHECK_EQ(x.dim(1), ring.query_width() + ring.kv_width());
  if (rotary != nullptr) ring.Rotate(ctx, x, *rotary, /*inverse=*/false);
  const DType sums = AccumulatorOf(x.dtype());
  const Tensor sum = ctx.Empty({x.dim(0), ring.query_width()}, sums);
  sum.Rows(kHalves * ring.rows, sum.dim(0)).Zero();
  Tensor lse =
      ctx.Empty({kHalves, chunk.batch, chunk.heads, chunk.seq_q}, sums);
  const Tensor out_part = ctx.Empty({ring.rows, ring.query_width()}, x.dtype());
  const Tensor lse_part =
      ctx.Empty({chunk.batch, chunk.heads, chunk.seq_q}, sums);
  Tensor kv = ring.KeysAndValues(ctx, x);
  Tensor next = ctx.Empty(kv.shape(), kv.dtype());
  std::array<bool, kHalves> first = {true, true};
  for (int step = 0; step < ring.ranks(); ++step) {
    if (step + 1 < ring.ranks()) {
      WaitFor(ctx.comm, ctx.compute);
      const ProfileRange range = Meeting(ctx, "ring", *ring.cp);
      ring.cp->Exchange(ring.Turn(kv, next), ctx.comm);
    }
    ring.ForPairs(ring.Source(step), [&](int q, int k,
                                         const kernels::AttentionShape& shape) {
      const Tensor keys = ring.Half(kv, k);
      kernels::AttentionForward({.shape = shape,
                                 .q = ring.Half(x, q).data(),
                                 .k = keys.data(),
                                 .v = ring.Values(keys),
                                 .q_stride = x.dim(1),
                                 .kv_stride = ring.kv_width(),
                                 .cu_seqlens = ring.lengths(),
                                 .out = out_part.data(),
                                 .lse = lse_part.data(),
                                 .dtype = x.dtype()},
                                ctx.compute);
      kernels::MergeAttention({.out = ring.Half(sum, q).data(),
                               .lse = lse.Rows(q, q + 1).data(),
                               .out_b = out_part.data(),
                               .lse_b = lse_part.data(),
                               .first = std::exchange(first[q], false),
                               .batch = shape.batch,
                               .seq = shape.seq_q,
                               .heads = shape.heads,
                               .head_dim = shape.head_dim,
                               .cu_seqlens = ring.lengths(),
                               .dtype = x.dtype()},
                              ctx.compute);
    });
    WaitFor(ctx.compute, ctx.comm);
    std::swap(kv, next);
  }
  Var out{Cast(ctx, sum, x.dtype())};
  if (ctx.tape == nullptr || !qkv.needs_grad()) return out;
  auto node = std::make_unique<RingAttentionNode>();
  node->qkv_slot = qkv.slot;
  node->out_slot = out.slot = ctx.tape->NewSlot();
  node->ring = ring;
  if (rotary != nullptr) node->rotary = *rotary;
  node->qkv = Saved(x);
  node->out = Saved(out.value);
  node->lse = Saved(std::move(lse));
  ctx.tape->Append(std::move(node));
  return out;
}

int64_t ContextParallelLength(int64_t tokens, int ranks) {
  const int64_t chunks = ranks == 1 ? 1 : 2 * ranks;
  return (tokens + chunks - 1) / chunks * chunks;
}

absl::StatusOr<std::vector<int32_t>> ContextParallelRows(
    absl::Span<const int32_t> cu_seqlens, int ranks, int rank) {
  std::vector<int32_t> rows;
  for (const int chunk : {rank, 2 * ranks - 1 - rank}) {
    for (size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
      const int32_t length = cu_seqlens[b + 1] - cu_seqlens[b];
      if (length % (2 * ranks) != 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "sequence ", b, ": ", length, " tokens, wanted a multiple of ",
            2 * ranks, ", twice context_parallel_size"));
      }
      const int32_t size = length / (2 * ranks);
      for (int32_t i = 0; i < size; ++i)
        rows.push_back(cu_seqlens[b] + chunk * size + i);
    }
  }
  return rows;
}

}  // namespace mimo
