#include "mimo/optim/adamw.h"

#include <algorithm>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/device.h"
#include "kernels/optim/adamw.h"
#include "kernels/optim/global_norm.h"

namespace mimo {
namespace {

// Elements [begin, end) of a parameter, all of which a norm counts or none.
struct Piece {
  int64_t begin, end;
  bool counted;
};

// Of copies that tp ranks or pipeline stages have, the first counts. Where a
// parameter has several shards they are rows; neighbours that count alike are
// one piece.
std::vector<Piece> PiecesOf(const ParameterShard& shard) {
  const std::vector<Shard>& shards = shard.parameter->sharding.shards;
  const bool first = shard.parameter->stage_copy == 0;
  if (shards.empty()) return {{shard.begin, shard.end, first}};
  if (shards.size() == 1)
    return {{shard.begin, shard.end, first && shards[0].copy == 0}};
  const Tensor& data = shard.parameter->data;
  const int64_t row = data.numel() / data.dim(0);
  std::vector<Piece> pieces;
  int64_t at = 0;
  for (const Shard& rows : shards) {
    const int64_t next = at + rows.size * row;
    const int64_t begin = std::max(shard.begin, at);
    const int64_t end = std::min(shard.end, next);
    if (begin < end) {
      const bool counted = first && rows.copy == 0;
      if (pieces.empty() || pieces.back().counted != counted)
        pieces.push_back({begin, end, counted});
      pieces.back().end = end;
    }
    at = next;
  }
  return pieces;
}

}  // namespace

AdamW::AdamW(const OptimizerConfig& config,
             const std::vector<ParamGroup>& groups, Communicator* world,
             Allocator& allocator)
    : config_(config),
      exp_avg_dtype_(config.exp_avg_dtype),
      world_(world),
      stream_(allocator.stream()),
      control_(allocator, {sizeof(kernels::AdamWControl)}, DType::kUInt8) {
  DType dtype = DType::kFloat32;
  std::vector<kernels::AdamWTensor> tensors;
  for (const ParamGroup& group : groups) {
    for (const ParameterShard& shard : group.shards) {
      Parameter* parameter = shard.parameter;
      const Tensor& data = parameter->data;
      if (parameters_.empty()) {
        dtype = data.dtype();
        if (exp_avg_dtype_ == DType::kFloat32)
          exp_avg_dtype_ = AccumulatorOf(dtype);
      }
      CHECK(data.dtype() == dtype)
          << parameter->name << " is " << Name(data.dtype());
      parameters_.push_back(parameter);
      const DType accumulator = AccumulatorOf(dtype);
      const int64_t size = shard.end - shard.begin;
      const auto add = [&](const char* what, const Tensor& values) {
        const bool fresh =
            state_
                .emplace(absl::StrCat(what, ".", parameter->name),
                         SliceOf(shard, values))
                .second;
        CHECK(fresh) << "two parameters are named " << parameter->name;
        return values.data();
      };
      int16_t* remainder = nullptr;
      if (accumulator != dtype) {
        remainders_.emplace_back(allocator, Shape{2 * size}, DType::kUInt8);
        remainder = static_cast<int16_t*>(remainders_.back().data());
        add("master", parameter->main_grad.Reshape({data.numel()})
                          .Rows(shard.begin, shard.end));
      }
      const auto moments = [&](DType type) {
        return Tensor::Zeros(allocator, {size}, type);
      };
      void* const exp_avg = add("exp_avg", moments(exp_avg_dtype_));
      void* const exp_avg_sq = add("exp_avg_sq", moments(accumulator));
      for (const Piece& piece : PiecesOf(shard)) {
        const auto from = [](void* memory, int64_t element, DType type) {
          return static_cast<char*>(memory) + element * SizeOf(type);
        };
        const int64_t own = piece.begin - shard.begin;
        tensors.push_back(
            {.param = from(data.data(), piece.begin, dtype),
             .remainder = remainder == nullptr ? nullptr : remainder + own,
             .grad =
                 from(parameter->main_grad.data(), piece.begin, accumulator),
             .exp_avg = from(exp_avg, own, exp_avg_dtype_),
             .exp_avg_sq = from(exp_avg_sq, own, accumulator),
             .size = piece.end - piece.begin,
             .lr_scale = group.lr_mult,
             .weight_decay =
                 data.rank() >= 2 ? config.weight_decay * group.wd_mult : 0,
             .counted = piece.counted});
      }
    }
  }
  tensors_.emplace(tensors, dtype, stream_);
  SetControl({});
  SetMasters();
}

AdamW::AdamW(const OptimizerConfig& config,
             const std::vector<Parameter*>& parameters, Allocator& allocator)
    : AdamW(config, {{.shards = WholeShards(parameters)}}, nullptr, allocator) {
}

void AdamW::Step(double lr, const double* loss) {
  CopyBytes(&control()->lr, &lr, sizeof(lr), stream_);
  for (Parameter* parameter : parameters_) parameter->Grad();
  kernels::SumSquares({.tensors = &*tensors_, .control = control()}, stream_);
  if (world_ != nullptr) {
    double* squares = &control()->squares;  // an address of the device's
    world_->AllReduce(squares, squares, 1, DType::kFloat64, ReduceOp::kSum,
                      stream_);
  }
  kernels::ClipFactor(
      {.max_norm = config_.clip_grad, .loss = loss, .control = control()},
      stream_);
  kernels::AdamW({.tensors = &*tensors_,
                  .exp_avg_dtype = exp_avg_dtype_,
                  .beta1 = config_.adam_beta1,
                  .beta2 = config_.adam_beta2,
                  .eps = config_.adam_eps,
                  .control = control()},
                 stream_);
}

void AdamW::CopyControl(kernels::AdamWControl* to) const {
  CopyBytes(to, control_.data(), sizeof(*to), stream_);
}

const SliceMap& AdamW::State() {
  if (!remainders_.empty()) {
    kernels::JoinMasters({.tensors = &*tensors_}, stream_);
    for (Parameter* parameter : parameters_) parameter->ForgetGrad();
  }
  return state_;
}

void AdamW::Restore(int64_t steps, int64_t skipped) {
  kernels::SplitMasters({.tensors = &*tensors_}, stream_);
  SetControl({.steps = steps, .skipped = skipped});
}

void AdamW::SetMasters() {
  for (Tensor& remainder : remainders_) remainder.Zero();
}

kernels::AdamWControl AdamW::Control() const {
  kernels::AdamWControl value;
  CopyControl(&value);
  Synchronize(stream_);
  return value;
}

void AdamW::SetControl(const kernels::AdamWControl& value) {
  CopyBytes(control_.data(), &value, sizeof(value), stream_);
}

}  // namespace mimo
