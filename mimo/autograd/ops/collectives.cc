#include "mimo/autograd/ops/collectives.h"

#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "kernels/base/device.h"

namespace mimo {
namespace {

// The collectives alone, with the wait of their readers.
Tensor Gathered(const Context& ctx, const Tensor& x, Communicator& group) {
  Tensor out = GatherTokens(ctx, x, group);
  WaitFor(ctx.compute, ctx.comm);
  return out;
}
Tensor ReducedTokens(const Context& ctx, const Tensor& x, Communicator& group) {
  const Tensor padded = PadTokens(ctx, x, group.size());
  Tensor out = ReduceTokens(ctx, padded, group);
  WaitFor(ctx.compute, ctx.comm);
  return out;
}
Tensor Reduced(const Context& ctx, const Tensor& x, Communicator& group) {
  Tensor out = Reduce(ctx, x, group);
  WaitFor(ctx.compute, ctx.comm);
  return out;
}
// The rank's rows of x.
Tensor Sliced(const Context& ctx, const Tensor& x, Communicator& group) {
  const Tensor padded = PadTokens(ctx, x, group.size());
  const int64_t count = padded.dim(0) / group.size();
  return padded.Rows(group.rank() * count, (group.rank() + 1) * count);
}

// dx = backward(dout)
template <typename F>
struct CollectiveNode final : Node {
  CollectiveNode(const char* name, Slot x, Slot out, F backward)
      : name_(name), x_slot(x), out_slot(out), backward(std::move(backward)) {}
  const char* name() const override { return name_; }
  void Backward(BackwardContext& ctx) override {
    const Tensor dout = ctx.Take(out_slot);
    if (dout.defined()) ctx.PassGrad(x_slot, backward(ctx.exec(), dout));
  }
  const char* name_;
  Slot x_slot, out_slot;
  F backward;
};

template <typename F>
Var Record(const Context& ctx, const char* name, const Var& x, Tensor value,
           F backward) {
  Var out{std::move(value)};
  if (ctx.tape == nullptr || !x.needs_grad()) return out;
  out.slot = ctx.tape->NewSlot();
  ctx.tape->Append(std::make_unique<CollectiveNode<F>>(name, x.slot, out.slot,
                                                       std::move(backward)));
  return out;
}

}  // namespace

int64_t TokensOfRank(int64_t tokens, const Communicator* group) {
  const int ranks = group == nullptr ? 1 : group->size();
  return (tokens + ranks - 1) / ranks;
}

ProfileRange Meeting(const Context& ctx, const char* operation,
                     const Communicator& group) {
  Context on_comm = ctx;
  on_comm.compute = ctx.comm;
  return ProfileRange(on_comm, operation, group.members());
}

Tensor GatherTokens(const Context& ctx, const Tensor& x, Communicator& group) {
  Shape shape = x.shape();
  shape[0] *= group.size();
  Tensor out = ctx.Empty(std::move(shape), x.dtype());
  WaitFor(ctx.comm, ctx.compute);
  const ProfileRange range = Meeting(ctx, "all-gather", group);
  group.AllGather(x.data(), out.data(), x.numel(), x.dtype(), ctx.comm);
  return out;
}

Tensor ReduceTokens(const Context& ctx, const Tensor& x, Communicator& group) {
  Shape shape = x.shape();
  CHECK_EQ(shape[0] % group.size(), 0) << "rows by ranks";
  shape[0] /= group.size();
  Tensor out = ctx.Empty(std::move(shape), x.dtype());
  WaitFor(ctx.comm, ctx.compute);
  const ProfileRange range = Meeting(ctx, "reduce-scatter", group);
  group.ReduceScatter(x.data(), out.data(), out.numel(), x.dtype(),
                      ReduceOp::kSum, ctx.comm);
  return out;
}

Tensor Reduce(const Context& ctx, const Tensor& x, Communicator& group) {
  Tensor out = ctx.Empty(x.shape(), x.dtype());
  WaitFor(ctx.comm, ctx.compute);
  const ProfileRange range = Meeting(ctx, "all-reduce", group);
  group.AllReduce(x.data(), out.data(), x.numel(), x.dtype(), ReduceOp::kSum,
                  ctx.comm);
  return out;
}

Tensor PadTokens(const Context& ctx, const Tensor& x, int64_t multiple) {
  const int64_t rows = x.dim(0);
  Shape shape = x.shape();
  shape[0] = (rows + multiple - 1) / multiple * multiple;
  if (shape[0] == rows) return x;
  Tensor padded = ctx.Empty(std::move(shape), x.dtype());
  padded.Rows(0, rows).CopyFrom(x);
  padded.Rows(rows, padded.dim(0)).Zero();
  return padded;
}

Tensor PadIndices(const Context& ctx, const Tensor& index, int64_t rows) {
  if (index.numel() == rows) return index;
  Tensor padded = ctx.Empty({rows}, DType::kInt32);
  padded.Rows(0, index.numel()).CopyFrom(index);
  const Tensor tail = padded.Rows(index.numel(), rows);
  FillBytes(tail.data(), 0xff, tail.bytes(), ctx.compute);
  return padded;
}

Var GatherTokensReduceGrad(const Context& ctx, const Var& x,
                           Communicator* group) {
  if (group == nullptr) return x;
  return Record(ctx, "GatherTokensReduceGrad", x,
                Gathered(ctx, x.value, *group),
                [group](const Context& exec, const Tensor& dout) {
                  return ReducedTokens(exec, dout, *group);
                });
}

Var GatherTokensSliceGrad(const Context& ctx, const Var& x, int64_t tokens,
                          Communicator* group) {
  if (group == nullptr) return x;
  return Record(ctx, "GatherTokensSliceGrad", x,
                Gathered(ctx, x.value, *group).Rows(0, tokens),
                [group](const Context& exec, const Tensor& dout) {
                  return Sliced(exec, dout, *group);
                });
}

Var SliceTokensGatherGrad(const Context& ctx, const Var& x,
                          Communicator* group) {
  if (group == nullptr) return x;
  return Record(ctx, "SliceTokensGatherGrad", x, Sliced(ctx, x.value, *group),
                [group, tokens = x.value.dim(0)](const Context& exec,
                                                 const Tensor& dout) {
                  return Gathered(exec, dout, *group).Rows(0, tokens);
                });
}

Var ReduceTokensGatherGrad(const Context& ctx, const Var& x,
                           Communicator* group) {
  if (group == nullptr) return x;
  return Record(ctx, "ReduceTokensGatherGrad", x,
                ReducedTokens(ctx, x.value, *group),
                [group, tokens = x.value.dim(0)](const Context& exec,
                                                 const Tensor& dout) {
                  return Gathered(exec, dout, *group).Rows(0, tokens);
                });
}

Var ReduceCopyGrad(const Context& ctx, const Var& x, Communicator* group) {
  if (group == nullptr) return x;
  return Record(ctx, "ReduceCopyGrad", x, Reduced(ctx, x.value, *group),
                [](const Context& exec, const Tensor& dout) { return dout; });
}

Var CopyReduceGrad(const Context& ctx, const Var& x, Communicator* group) {
  if (group == nullptr) return x;
  return Record(ctx, "CopyReduceGrad", x, x.value,
                [group](const Context& exec, const Tensor& dout) {
                  return Reduced(exec, dout, *group);
                });
}

}  // namespace mimo
