#include "mimo/autograd/ops/attention.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/log/check.h"
#include "kernels/activation/silu_gate.h"
#include "kernels/rotary/rotary.h"

namespace mimo {
namespace {

// Where the key and value heads of a fused row start.
struct Heads {
  Heads(const Tensor& qkv, const kernels::AttentionShape& shape) {
    const int64_t size = SizeOf(qkv.dtype());
    q = static_cast<char*>(qkv.data());
    k = q + shape.heads * shape.head_dim * size;
    v = k + shape.kv_heads * shape.head_dim * size;
  }
  char *q, *k, *v;
};

int64_t RowsOf(const kernels::AttentionShape& shape, const Packing& packing) {
  return packing.defined() ? packing.positions.numel()
                           : shape.batch * shape.seq_q;
}

// Clears the rows behind the samples'.
void ZeroPadding(const Tensor& x, int64_t rows) {
  x.Rows(rows, x.dim(0)).Zero();
}

const int32_t* Lengths(const Packing& packing) {
  return packing.defined() ? packing.cu_seqlens.pointer<int32_t>() : nullptr;
}

struct AttentionNode final : Node {
  Slot qkv_slot, out_slot;
  kernels::AttentionShape shape;
  Saved qkv, out, lse;
  Packing packing;
  std::optional<Rotary> rotary;

  const char* name() const override { return "Attention"; }
  void Backward(BackwardContext& ctx) override {
    const Tensor dout = ctx.Take(out_slot);
    if (!dout.defined()) return;
    const Tensor& x = qkv.get();
    const auto dqkv = ctx.GradFor(qkv_slot, x.shape(), x.dtype());
    CHECK(!dqkv.accumulate) << "Attention must be the projection's only user";
    const Heads in(x, shape), grad(dqkv.buffer, shape);
    const int64_t rows = RowsOf(shape, packing);
    ZeroPadding(dqkv.buffer, rows);
    // The kernel turns back what is not packed.
    const bool turns = rotary && !packing.defined();
    const Tensor workspace =
        ctx.exec().Empty({kernels::AttentionBackwardWorkspaceBytes(
                             shape, x.dtype(), ctx.exec().compute.device)},
                         DType::kUInt8);
    kernels::AttentionBackward({.shape = shape,
                                .q = in.q,
                                .k = in.k,
                                .v = in.v,
                                .q_stride = x.dim(1),
                                .kv_stride = x.dim(1),
                                .cu_seqlens = Lengths(packing),
                                .out = out.get().data(),
                                .lse = lse.get().data(),
                                .dout = dout.data(),
                                .dq = grad.q,
                                .dk = grad.k,
                                .dv = grad.v,
                                .dq_stride = x.dim(1),
                                .dkv_stride = x.dim(1),
                                .cos = turns ? rotary->cos.data() : nullptr,
                                .sin = turns ? rotary->sin.data() : nullptr,
                                .workspace = workspace.data(),
                                .dtype = x.dtype()},
                               ctx.exec().compute);
    if (rotary && packing.defined())
      ApplyRotary(ctx.exec(), dqkv.buffer.Rows(0, rows), *rotary,
                  shape.heads + shape.kv_heads, shape.head_dim,
                  packing.positions, /*inverse=*/true);
  }
};

struct SiluGateNode final : Node {
  Slot x_slot, y_slot;
  Saved x;  // [T, 2F]

  const char* name() const override { return "SiluGate"; }
  void Backward(BackwardContext& ctx) override {
    const Tensor dy = ctx.Take(y_slot);
    if (!dy.defined()) return;
    const Tensor in = x.Take();
    // In place if nobody else has it: it is a layer's largest tensor.
    Tensor dx = in.unique() ? in : ctx.exec().Empty(in.shape(), in.dtype());
    kernels::SiluGateBackward({.x = in.data(),
                               .dy = dy.data(),
                               .dx = dx.data(),
                               .tokens = in.dim(0),
                               .features = in.dim(1) / 2,
                               .dtype = in.dtype()},
                              ctx.exec().compute);
    ctx.PassGrad(x_slot, std::move(dx));
  }
};

}  // namespace

void ApplyRotary(const Context& ctx, const Tensor& qkv, const Rotary& rotary,
                 int64_t heads, int64_t head_dim, const Tensor& positions,
                 bool inverse) {
  kernels::Rotary(
      {.x = qkv.data(),
       .cos = rotary.cos.data(),
       .sin = rotary.sin.data(),
       .positions =
           positions.defined() ? positions.pointer<int32_t>() : nullptr,
       .seq = rotary.seq,
       .first_position = rotary.first_position,
       .tokens = qkv.dim(0),
       .heads = heads,
       .head_dim = head_dim,
       .stride = qkv.dim(1),
       .max_position = rotary.cos.dim(0),
       .inverse = inverse,
       .dtype = qkv.dtype()},
      ctx.compute);
}

Var Attention(const Context& ctx, const Var& qkv,
              const kernels::AttentionShape& shape, const Rotary* rotary,
              const Packing& packing) {
  const Tensor& x = qkv.value;
  const int64_t rows = RowsOf(shape, packing);
  CHECK_GE(x.dim(0), rows);
  CHECK_EQ(x.dim(1), (shape.heads + 2 * shape.kv_heads) * shape.head_dim);
  if (rotary != nullptr)
    ApplyRotary(ctx, x.Rows(0, rows), *rotary, shape.heads + shape.kv_heads,
                shape.head_dim, packing.positions);
  Var out{ctx.Empty({x.dim(0), shape.heads * shape.head_dim}, x.dtype())};
  ZeroPadding(out.value, rows);
  Tensor lse = ctx.Empty({shape.batch, shape.heads, shape.seq_q},
                         AccumulatorOf(x.dtype()));
  const Heads in(x, shape);
  kernels::AttentionForward({.shape = shape,
                             .q = in.q,
                             .k = in.k,
                             .v = in.v,
                             .q_stride = x.dim(1),
                             .kv_stride = x.dim(1),
                             .cu_seqlens = Lengths(packing),
                             .out = out.value.data(),
                             .lse = lse.data(),
                             .dtype = x.dtype()},
                            ctx.compute);
  if (ctx.tape == nullptr || !qkv.needs_grad()) return out;
  auto node = std::make_unique<AttentionNode>();
  node->qkv_slot = qkv.slot;
  node->out_slot = out.slot = ctx.tape->NewSlot();
  node->shape = shape;
  node->qkv = Saved(x);
  node->out = Saved(out.value);
  node->lse = Saved(std::move(lse));
  node->packing = packing;
  if (rotary != nullptr) {
    CHECK(packing.defined() ||
          (rotary->first_position == 0 && rotary->seq == shape.seq_q));
    node->rotary = *rotary;
  }
  ctx.tape->Append(std::move(node));
  return out;
}

Var SiluGate(const Context& ctx, const Var& x) {
  const int64_t tokens = x.value.dim(0), features = x.value.dim(1) / 2;
  Var y{ctx.Empty({tokens, features}, x.value.dtype())};
  kernels::SiluGateForward({.x = x.value.data(),
                            .y = y.value.data(),
                            .tokens = tokens,
                            .features = features,
                            .dtype = x.value.dtype()},
                           ctx.compute);
  if (ctx.tape == nullptr || !x.needs_grad()) return y;
  auto node = std::make_unique<SiluGateNode>();
  node->x_slot = x.slot;
  node->y_slot = y.slot = ctx.tape->NewSlot();
  node->x = Saved(x.value);
  ctx.tape->Append(std::move(node));
  return y;
}

}  // namespace mimo
