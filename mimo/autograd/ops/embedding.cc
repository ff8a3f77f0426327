#include "mimo/autograd/ops/embedding.h"

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "kernels/elementwise/copy_2d.h"
#include "kernels/embedding/rows.h"
#include "kernels/patch/patches.h"
#include "mimo/autograd/ops/collectives.h"

namespace mimo {
namespace {

void Gather(const Context& ctx, const Tensor& table, const Tensor& index,
            const Tensor& out, bool accumulate) {
  kernels::GatherRows({.table = table.data(),
                       .index = index.pointer<int32_t>(),
                       .out = out.data(),
                       .accumulate = accumulate,
                       .rows = index.numel(),
                       .table_rows = table.dim(0),
                       .hidden = table.dim(1),
                       .dtype = table.dtype()},
                      ctx.compute);
}

// unique: no row of the table is written twice.
void ScatterAdd(const Context& ctx, const Tensor& rows, const Tensor& index,
                const Tensor& table, float beta, bool unique) {
  const Tensor workspace =
      ctx.Empty({kernels::ScatterAddRowsWorkspaceBytes(index.numel(), unique,
                                                       ctx.compute.device)},
                DType::kUInt8);
  kernels::ScatterAddRows({.rows_in = rows.data(),
                           .index = index.pointer<int32_t>(),
                           .table = table.data(),
                           .beta = beta,
                           .unique = unique,
                           .workspace = workspace.data(),
                           .rows = index.numel(),
                           .table_rows = table.dim(0),
                           .hidden = table.dim(1),
                           .dtype = rows.dtype(),
                           .table_dtype = table.dtype()},
                          ctx.compute);
}

// Rows of this rank's part of the vocabulary; -1 of the others'.
Tensor OwnIds(const Context& ctx, const Tensor& ids, const Parameter& weight) {
  Tensor own = ctx.Empty(ids.shape(), DType::kInt32);
  kernels::IndexOfPart({.index = ids.pointer<int32_t>(),
                        .out = own.pointer<int32_t>(),
                        .rows = ids.numel(),
                        .begin = weight.sharding.shards[0].begin,
                        .table_rows = weight.data.dim(0)},
                       ctx.compute);
  return own;
}

struct EmbedAndPlaceNode final : Node {
  Slot out_slot;
  Saved ids;
  ParameterUse weight;
  std::vector<Slot> slots;
  std::vector<Tensor> positions;

  const char* name() const override { return "EmbedAndPlace"; }
  void Backward(BackwardContext& ctx) override {
    const Tensor dout = ctx.Take(out_slot);
    if (!dout.defined()) return;
    for (size_t i = 0; i < slots.size(); ++i) {
      const auto drows = ctx.GradFor(
          slots[i], {positions[i].numel(), dout.dim(1)}, dout.dtype());
      if (drows.buffer.defined()) {
        Gather(ctx.exec(), dout, positions[i], drows.buffer, drows.accumulate);
      }
    }
    if (!weight->frozen) {
      ScatterAdd(ctx.exec(), dout, ids.get(), weight->main_grad,
                 weight->NextBeta(), /*unique=*/false);
    }
  }
};

struct SelectRowsNode final : Node {
  Slot x_slot, out_slot;
  Shape x_shape;
  Tensor index;

  const char* name() const override { return "SelectRows"; }
  void Backward(BackwardContext& ctx) override {
    const Tensor dout = ctx.Take(out_slot);
    if (!dout.defined()) return;
    const auto dx = ctx.GradFor(x_slot, x_shape, dout.dtype());
    ScatterAdd(ctx.exec(), dout, index, dx.buffer, dx.accumulate ? 1 : 0,
               /*unique=*/true);
  }
};

// Patches between a buffer with class tokens and one without.
void CopyPatches(const Context& ctx, const Tensor& with, const Tensor& without,
                 int64_t tokens, bool drop) {
  const int64_t hidden = with.dim(1), images = with.dim(0) / tokens;
  char* patches =
      static_cast<char*>(with.data()) + hidden * SizeOf(with.dtype());
  const int64_t stride = tokens * hidden, columns = stride - hidden;
  kernels::Copy2d({.src = drop ? patches : without.data(),
                   .src_stride = drop ? stride : columns,
                   .dst = drop ? without.data() : patches,
                   .dst_stride = drop ? columns : stride,
                   .rows = images,
                   .columns = columns,
                   .dtype = with.dtype()},
                  ctx.compute);
}

struct DropClassTokensNode final : Node {
  Slot x_slot, out_slot;
  Shape x_shape;
  int64_t tokens;

  const char* name() const override { return "DropClassTokens"; }

  void Backward(BackwardContext& ctx) override {
    const Tensor dout = ctx.Take(out_slot);
    if (!dout.defined()) return;
    auto dx = ctx.GradFor(x_slot, x_shape, dout.dtype());
    CHECK(!dx.accumulate) << "DropClassTokens must be the tokens' only user";
    dx.buffer.Zero();
    CopyPatches(ctx.exec(), dx.buffer, dout, tokens, /*drop=*/false);
  }
};

// A part's elements of each item, which are in `whole` from `begin` of the
// item's.
void CopyItems(const Context& ctx, const Tensor& part, const Tensor& whole,
               int64_t items, int64_t begin, bool join) {
  const int64_t columns = part.numel() / items, stride = whole.numel() / items;
  char* const at =
      static_cast<char*>(whole.data()) + begin * SizeOf(whole.dtype());
  kernels::Copy2d({.src = join ? part.data() : at,
                   .src_stride = join ? columns : stride,
                   .dst = join ? at : part.data(),
                   .dst_stride = join ? stride : columns,
                   .rows = items,
                   .columns = columns,
                   .dtype = whole.dtype()},
                  ctx.compute);
}

struct Part {
  Slot slot;
  Shape shape;
};

struct ConcatItemsNode final : Node {
  std::vector<Part> parts;
  int64_t items;
  Slot out_slot;

  const char* name() const override { return "ConcatItems"; }
  void Backward(BackwardContext& ctx) override {
    const Tensor dout = ctx.Take(out_slot);
    if (!dout.defined()) return;
    int64_t begin = 0;
    for (const Part& part : parts) {
      const auto dx = ctx.GradFor(part.slot, part.shape, dout.dtype());
      CHECK(!dx.accumulate) << "ConcatItems must be a part's only user";
      if (dx.buffer.defined()) {
        CopyItems(ctx.exec(), dx.buffer, dout, items, begin, /*join=*/false);
      }
      begin += NumElements(part.shape) / items;
    }
  }
};

// Of each item the parts, as an `out_shape`.
Var ConcatItems(const Context& ctx, const std::vector<Var>& parts,
                int64_t items, Shape out_shape) {
  Var out{ctx.Empty(std::move(out_shape), parts[0].value.dtype())};
  int64_t begin = 0;
  bool record = false;
  for (const Var& part : parts) {
    CopyItems(ctx, part.value, out.value, items, begin, /*join=*/true);
    begin += part.value.numel() / items;
    record = record || part.needs_grad();
  }
  if (ctx.tape == nullptr || !record) return out;
  auto node = std::make_unique<ConcatItemsNode>();
  for (const Var& part : parts)
    node->parts.push_back({part.slot, part.value.shape()});
  node->items = items;
  node->out_slot = out.slot = ctx.tape->NewSlot();
  ctx.tape->Append(std::move(node));
  return out;
}

struct UnpackRowsNode final : Node {
  Slot packed_slot;
  Shape packed_shape;
  DType dtype;
  std::vector<Part> parts;

  const char* name() const override { return "UnpackRows"; }
  void Backward(BackwardContext& ctx) override {
    const auto dx = ctx.GradFor(packed_slot, packed_shape, dtype);
    CHECK(!dx.accumulate) << "UnpackRows must be the only user";
    int64_t begin = 0;
    for (const Part& part : parts) {
      const int64_t end = begin + NumElements(part.shape);
      const Tensor dpart = ctx.Take(part.slot);
      if (dpart.defined()) {
        CopyItems(ctx.exec(), dpart, dx.buffer, 1, begin, /*join=*/true);
      } else {
        dx.buffer.Rows(begin, end).Zero();
      }
      begin = end;
    }
  }
};

struct VisionTokensNode final : Node {
  Slot x_slot, y_slot;
  Shape x_shape;
  ParameterUse class_token;
  ParameterUse position;

  const char* name() const override { return "VisionTokens"; }
  void Backward(BackwardContext& ctx) override {
    const Tensor dy = ctx.Take(y_slot);
    if (!dy.defined()) return;
    const auto dx = ctx.GradFor(x_slot, x_shape, dy.dtype());
    CHECK(!dx.accumulate) << "VisionTokens must be the patches' only user";
    const int64_t patches = position->data.dim(0) - 1;
    kernels::VisionTokensBackward(
        {.dy = dy.data(),
         .class_token = true,
         .dx = dx.data(),
         .dclass = class_token->main_grad_or_null(),
         .dposition = position->main_grad_or_null(),
         .dclass_beta = class_token->frozen ? 0 : class_token->NextBeta(),
         .dposition_beta = position->frozen ? 0 : position->NextBeta(),
         .images = dy.dim(0) / (patches + 1),
         .patches = patches,
         .hidden = dy.dim(1),
         .dtype = dy.dtype()},
        ctx.exec().compute);
  }
};

}  // namespace

Var EmbedAndPlace(const Context& ctx, const Tensor& ids, Parameter& weight,
                  const std::vector<PlacedRows>& placed,
                  const ParallelGroups& groups) {
  const Tensor own_ids = groups.tp == nullptr ? ids : OwnIds(ctx, ids, weight);
  Var out{ctx.Empty({ids.numel(), weight.data.dim(1)}, weight.data.dtype())};
  Gather(ctx, weight.Values(), own_ids, out.value, /*accumulate=*/false);
  bool record = !weight.frozen;
  for (const PlacedRows& p : placed) {
    CHECK_EQ(p.rows.value.dim(0), p.positions.numel());
    CHECK_EQ(p.rows.value.dim(1), out.value.dim(1));
    record = record || p.rows.needs_grad();
    if (groups.tp_rank() != 0) continue;  // the ranks' rows are summed
    ScatterAdd(ctx, p.rows.value, p.positions, out.value, /*beta=*/1,
               /*unique=*/true);
  }
  if (ctx.tape != nullptr && record) {
    auto node = std::make_unique<EmbedAndPlaceNode>();
    node->out_slot = out.slot = ctx.tape->NewSlot();
    node->ids = Saved(own_ids);
    node->weight = &weight;
    for (const PlacedRows& p : placed) {
      node->slots.push_back(p.rows.slot);
      node->positions.push_back(p.positions);
    }
    ctx.tape->Append(std::move(node));
  }
  return groups.sequence_parallel ? ReduceTokensGatherGrad(ctx, out, groups.tp)
                                  : ReduceCopyGrad(ctx, out, groups.tp);
}

Var SelectRows(const Context& ctx, const Var& x, const Tensor& index) {
  Var out{ctx.Empty({index.numel(), x.value.dim(1)}, x.value.dtype())};
  Gather(ctx, x.value, index, out.value, /*accumulate=*/false);
  if (ctx.tape == nullptr || !x.needs_grad()) return out;
  auto node = std::make_unique<SelectRowsNode>();
  node->x_slot = x.slot;
  node->out_slot = out.slot = ctx.tape->NewSlot();
  node->x_shape = x.value.shape();
  node->index = index;
  ctx.tape->Append(std::move(node));
  return out;
}

Var ConcatRows(const Context& ctx, const std::vector<Var>& parts,
               int64_t items) {
  CHECK(!parts.empty());
  const int64_t hidden = parts[0].value.dim(1);
  int64_t rows = 0;
  for (const Var& part : parts) {
    CHECK_EQ(part.value.dim(1), hidden);
    CHECK_EQ(part.value.dim(0) % items, 0);
    rows += part.value.dim(0);
  }
  return ConcatItems(ctx, parts, items, {rows, hidden});
}

Var PackRows(const Context& ctx, const std::vector<Var>& parts) {
  CHECK(!parts.empty());
  int64_t elements = 0;
  for (const Var& part : parts) elements += part.value.numel();
  return ConcatItems(ctx, parts, 1, {elements, 1});
}

std::vector<Var> UnpackRows(const Context& ctx, const Var& packed,
                            const std::vector<Shape>& shapes) {
  std::vector<Var> parts;
  int64_t begin = 0;
  for (const Shape& shape : shapes) {
    Var& part = parts.emplace_back(ctx.Empty(shape, packed.value.dtype()));
    CopyItems(ctx, part.value, packed.value, 1, begin, /*join=*/false);
    begin += NumElements(shape);
  }
  CHECK_EQ(begin, packed.value.numel());
  if (ctx.tape == nullptr || !packed.needs_grad()) return parts;
  auto node = std::make_unique<UnpackRowsNode>();
  for (Var& part : parts) {
    part.slot = ctx.tape->NewSlot();
    node->parts.push_back({part.slot, part.value.shape()});
  }
  node->packed_slot = packed.slot;
  node->packed_shape = packed.value.shape();
  node->dtype = packed.value.dtype();
  ctx.tape->Append(std::move(node));
  return parts;
}

Var VisionTokens(const Context& ctx, const Var& x, Parameter& class_token,
                 Parameter& position) {
  const int64_t patches = position.data.dim(0) - 1;
  CHECK_EQ(x.value.dim(0) % patches, 0) << position.name;
  const int64_t images = x.value.dim(0) / patches;
  const int64_t hidden = x.value.dim(1);
  Var y{ctx.Empty({images * (patches + 1), hidden}, x.value.dtype())};
  kernels::VisionTokensForward({.x = x.value.data(),
                                .class_token = class_token.Values().data(),
                                .position = position.Values().data(),
                                .y = y.value.data(),
                                .images = images,
                                .patches = patches,
                                .hidden = hidden,
                                .dtype = x.value.dtype()},
                               ctx.compute);
  if (ctx.tape == nullptr ||
      !(x.needs_grad() || !class_token.frozen || !position.frozen)) {
    return y;
  }
  auto node = std::make_unique<VisionTokensNode>();
  node->x_slot = x.slot;
  node->y_slot = y.slot = ctx.tape->NewSlot();
  node->x_shape = x.value.shape();
  node->class_token = &class_token;
  node->position = &position;
  ctx.tape->Append(std::move(node));
  return y;
}

Var DropClassTokens(const Context& ctx, const Var& x, int64_t tokens) {
  CHECK_EQ(x.value.dim(0) % tokens, 0);
  const int64_t images = x.value.dim(0) / tokens;
  Var out{ctx.Empty({images * (tokens - 1), x.value.dim(1)}, x.value.dtype())};
  CopyPatches(ctx, x.value, out.value, tokens, /*drop=*/true);
  if (ctx.tape == nullptr || !x.needs_grad()) return out;
  auto node = std::make_unique<DropClassTokensNode>();
  node->x_slot = x.slot;
  node->out_slot = out.slot = ctx.tape->NewSlot();
  node->x_shape = x.value.shape();
  node->tokens = tokens;
  ctx.tape->Append(std::move(node));
  return out;
}

}  // namespace mimo
