#include "mimo/nn/tensor_parallel_grads.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "kernels/elementwise/add.h"

namespace mimo {
namespace {

// A shard's rows of a gradient.
struct Rows {
  Tensor grad;
  int copies, copy;
};

// One all-reduce of them all.
void SumOfAll(const Context& ctx, const std::vector<Rows>& all,
              Communicator& tp) {
  int64_t size = 0;
  for (const Rows& rows : all) size += rows.grad.numel();
  if (size == 0) return;
  const DType dtype = all[0].grad.dtype();
  const Tensor flat = ctx.Empty({size}, dtype);
  const auto copy = [&](bool out) {
    int64_t at = 0;
    for (const Rows& rows : all) {
      Tensor part = flat.Rows(at, at + rows.grad.numel());
      Tensor grad = rows.grad.Reshape(part.shape());
      out ? grad.CopyFrom(part) : part.CopyFrom(grad);
      at += part.numel();
    }
  };
  copy(/*out=*/false);
  tp.AllReduce(flat.data(), flat.data(), size, dtype, ReduceOp::kSum,
               ctx.compute);
  copy(/*out=*/true);
}

// Every copy gets the others' and adds them up in the order of the ranks.
void SumOfSome(const Context& ctx, const std::vector<Rows>& some,
               Communicator& tp) {
  std::vector<Transfer> transfers;
  std::vector<std::vector<Tensor>> parts;  // of `some`, by copy
  for (const Rows& rows : some) {
    parts.emplace_back(rows.copies);
    for (int copy = 0; copy < rows.copies; ++copy) {
      Tensor& part = parts.back()[copy];
      if (copy == rows.copy) {
        part = rows.grad.Clone(*ctx.allocator);
        continue;
      }
      part = ctx.Empty(rows.grad.shape(), rows.grad.dtype());
      const int peer = tp.rank() - rows.copy + copy;
      for (const auto& [kind, tensor] :
           {std::pair(Transfer::kSend, &rows.grad), {Transfer::kRecv, &part}})
        transfers.push_back(
            {kind, tensor->data(), tensor->numel(), tensor->dtype(), peer});
    }
  }
  tp.Exchange(transfers, ctx.compute);
  for (size_t i = 0; i < some.size(); ++i) {
    for (int copy = 1; copy < some[i].copies; ++copy) {
      kernels::Add({.a = copy == 1 ? parts[i][0].data() : some[i].grad.data(),
                    .b = parts[i][copy].data(),
                    .out = some[i].grad.data(),
                    .size = some[i].grad.numel(),
                    .dtype = some[i].grad.dtype()},
                   ctx.compute);
    }
  }
}

}  // namespace

void SumGradsOverTp(const Context& ctx, absl::Span<Parameter* const> parameters,
                    Communicator& tp) {
  std::vector<Rows> all, some;
  for (Parameter* parameter : parameters) {
    if (parameter->frozen || !parameter->reduce_grad_over_tp) continue;
    CHECK_EQ(parameter->sharding.dim, 0) << parameter->name;
    int64_t at = 0;
    for (const Shard& shard : parameter->sharding.shards) {
      Rows rows = {parameter->Grad().Rows(at, at + shard.size), shard.copies,
                   shard.copy};
      at += shard.size;
      if (shard.copies > 1)
        (shard.copies == tp.size() ? all : some).push_back(std::move(rows));
    }
  }
  SumOfAll(ctx, all, tp);
  SumOfSome(ctx, some, tp);
}

}  // namespace mimo
