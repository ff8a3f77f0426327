#include "mimo/parallel/distributed_data_parallel.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/crc/crc32c.h"
#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/device.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/profiler.h"
#include "mimo/nn/tensor_parallel_grads.h"

namespace mimo {
namespace {

// Elements: where parameters and shards begin, so that loops over a shard meet
// the same vectors as loops over the whole parameter, and 16-byte loads align.
constexpr int64_t kAlignment = 64;

int64_t RoundUp(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

bool Replicated(const DataParallelModule& module) {
  return module.group != nullptr && module.group->size() > 1;
}

bool Tied(const Parameter& parameter) { return parameter.stage_copies > 1; }

// What a rank of a group has as rank `original` has it; undefined where no
// other rank has it.
struct Copy {
  std::string name;
  Tensor values;
  int64_t original;
};

// As CheckReplicas; all ranks of `group` have copies of as many things.
absl::Status CheckCopies(const std::vector<Copy>& copies, Communicator& group,
                         Allocator& allocator) {
  Allocator host;
  const int64_t count = copies.size();
  std::vector<int64_t> digests;  // [count, 2]: digest, original
  for (const Copy& copy : copies) {
    absl::crc32c_t digest{0};
    if (copy.values.defined()) {
      const Tensor bytes = copy.values.Clone(host);
      digest = absl::ComputeCrc32c({static_cast<const char*>(bytes.data()),
                                    static_cast<size_t>(bytes.bytes())});
    }
    digests.push_back(static_cast<uint32_t>(digest));
    digests.push_back(copy.original);
  }
  const Tensor own = Tensor::From<int64_t>(allocator, {count, 2}, digests);
  const Tensor all(allocator, {group.size(), count, 2}, DType::kInt64);
  group.AllGather(own.data(), all.data(), 2 * count, DType::kInt64,
                  allocator.stream());
  const Tensor read = all.Clone(host);
  MIMO_RETURN_IF_ERROR(group.Health());
  const auto values = read.span<int64_t>();
  for (int64_t i = 0; i < group.size() * count; ++i) {
    const int64_t original = values[2 * i + 1];
    if (values[2 * i] == values[2 * (original * count + i % count)]) continue;
    return absl::InternalError(absl::StrCat(
        copies[i % count].name, ": replicas ", original, " and ", i / count,
        " of group ", group.name(), " have other bits, wanted the same"));
  }
  return absl::OkStatus();
}

}  // namespace

DistributedDataParallel::DistributedDataParallel(
    const std::vector<DataParallelModule>& modules, Allocator& allocator,
    const DataParallelOptions& options)
    : allocator_(allocator),
      options_(options),
      comm_{.allocator = &allocator,
            .compute =
                NewStream(allocator.stream().device, StreamPriority::kUrgent)},
      modules_(modules),
      shards_(modules.size()) {
  for (size_t m = 0; m < modules.size(); ++m) {
    const std::vector<Parameter*>& parameters = modules[m].parameters;
    std::vector<Parameter*> next;
    int64_t size = 0;
    for (auto it = parameters.rbegin(); it != parameters.rend(); ++it) {
      Parameter* parameter = *it;
      if (parameter->frozen) continue;
      const int64_t elements = parameter->data.numel();
      if (!Replicated(modules[m])) {
        shards_[m].push_back({parameter, 0, elements});
        continue;
      }
      const bool apart = Tied(*parameter) || (!next.empty() && Tied(*next[0]));
      if (!next.empty() && (apart || size + elements > options.bucket_size)) {
        AddBucket(modules[m], std::exchange(next, {}), shards_[m]);
        size = 0;
      }
      next.push_back(parameter);
      size += elements;
    }
    if (!next.empty()) AddBucket(modules[m], std::move(next), shards_[m]);
  }
}

DistributedDataParallel::~DistributedDataParallel() {
  WaitFor(allocator_.stream(), comm_.compute);
  for (const Bucket& bucket : buckets_)
    for (Parameter* parameter : bucket.parameters)
      parameter->observer = nullptr;
}

void DistributedDataParallel::AddBucket(const DataParallelModule& module,
                                        std::vector<Parameter*> parameters,
                                        std::vector<ParameterShard>& shards) {
  Communicator* const group = module.group;
  int64_t size = 0;
  for (const Parameter* parameter : parameters)
    size += RoundUp(parameter->data.numel(), kAlignment);
  const int64_t shard =
      RoundUp((size + group->size() - 1) / group->size(), kAlignment);
  const DType dtype = parameters[0]->data.dtype();
  const Shape shape = {shard * group->size()};
  const AllocationTag tag(allocator_, "buckets");
  Bucket bucket = {
      .module = module.name,
      .group = group,
      .tp = module.tp,
      .shard = shard,
      .grads = Tensor::Zeros(allocator_, shape, AccumulatorOf(dtype)),
      .weights = Tensor::Zeros(allocator_, shape, dtype)};
  const int64_t first = shard * group->rank(), last = first + shard;
  int64_t begin = 0;
  for (Parameter* parameter : parameters) {
    CHECK(parameter->observer == nullptr && !parameter->written)
        << parameter->name << ": in two buckets, or in use";
    const int64_t end = begin + parameter->data.numel();
    const Shape own = parameter->data.shape();
    Tensor data = bucket.weights.Rows(begin, end).Reshape(own);
    data.CopyFrom(parameter->data);
    parameter->data = std::move(data);
    parameter->main_grad = bucket.grads.Rows(begin, end).Reshape(own);
    parameter->observer = this;
    bucket_of_[parameter] = buckets_.size();
    const int64_t from = std::max(begin, first), to = std::min(end, last);
    if (from < to) shards.push_back({parameter, from - begin, to - begin});
    begin += RoundUp(parameter->data.numel(), kAlignment);
  }
  bucket.parameters = std::move(parameters);
  buckets_.push_back(std::move(bucket));
}

void DistributedDataParallel::BeginLastBackward(const std::string& module) {
  if (!options_.overlap_grad_reduce) return;
  const auto of_module = [&](const Bucket& bucket) {
    return bucket.module == module;
  };
  const auto begin = std::ranges::find_if(buckets_, of_module);
  const auto end = std::find_if_not(begin, buckets_.end(), of_module);
  in_turn_ =
      absl::MakeSpan(buckets_).subspan(begin - buckets_.begin(), end - begin);
}

void DistributedDataParallel::EndLastBackward() {
  for (Bucket& bucket : std::exchange(in_turn_, {})) Reduce(bucket);
}

void DistributedDataParallel::LastUseGone(Parameter& parameter) {
  Bucket& bucket = buckets_[bucket_of_.at(&parameter)];
  CHECK(!bucket.reduced) << parameter.name
                         << " was used again after its bucket was reduced";
  if (in_turn_.empty() || in_turn_[0].module != bucket.module) return;
  bucket.complete.insert(&parameter);
  while (!in_turn_.empty() &&
         in_turn_[0].complete.size() == in_turn_[0].parameters.size()) {
    Reduce(in_turn_[0]);
    in_turn_.remove_prefix(1);
  }
}

void DistributedDataParallel::Reduce(Bucket& bucket) {
  for (Parameter* parameter : bucket.parameters) parameter->Grad();
  if (bucket.tp != nullptr)
    SumGradsOverTp({.allocator = &allocator_}, bucket.parameters, *bucket.tp);
  WaitFor(comm_.compute, allocator_.stream());
  const ProfileRange range(comm_, "reduce gradients", bucket.group->members());
  char* grads = static_cast<char*>(bucket.grads.data());
  const DType dtype = bucket.grads.dtype();
  bucket.group->ReduceScatter(
      grads, grads + bucket.group->rank() * bucket.shard * SizeOf(dtype),
      bucket.shard, dtype, ReduceOp::kSum, comm_.compute);
  bucket.complete.clear();
  bucket.reduced = true;
}

void DistributedDataParallel::FinishGradSync() {
  in_turn_ = {};  // one was left open where its backward failed
  for (Bucket& bucket : buckets_) {
    if (!bucket.reduced) Reduce(bucket);
  }
  for (const DataParallelModule& module : modules_) {
    if (!Replicated(module) && module.tp != nullptr)
      SumGradsOverTp({.allocator = &allocator_}, module.parameters, *module.tp);
  }
  SumOverStages();
  WaitFor(allocator_.stream(), comm_.compute);
  for (Bucket& bucket : buckets_) bucket.reduced = false;
}

void DistributedDataParallel::SumOverStages() {
  for (size_t m = 0; m < modules_.size(); ++m) {
    for (const auto& [parameter, begin, end] : shards_[m]) {
      if (!Tied(*parameter)) continue;
      CHECK(modules_[m].embd != nullptr) << parameter->name;
      const Tensor grad = parameter->Grad().Reshape({parameter->data.numel()});
      const Tensor own = grad.Rows(begin, end);
      WaitFor(comm_.compute, allocator_.stream());
      const ProfileRange range(comm_, "reduce gradients",
                               modules_[m].embd->members());
      modules_[m].embd->AllReduce(own.data(), own.data(), own.numel(),
                                  own.dtype(), ReduceOp::kSum, comm_.compute);
    }
  }
}

void DistributedDataParallel::GatherParameters() {
  WaitFor(comm_.compute, allocator_.stream());
  for (auto it = buckets_.rbegin(); it != buckets_.rend(); ++it) {
    Communicator& group = *it->group;
    const ProfileRange range(comm_, "gather parameters", group.members());
    char* weights = static_cast<char*>(it->weights.data());
    const DType dtype = it->weights.dtype();
    group.AllGather(weights + group.rank() * it->shard * SizeOf(dtype), weights,
                    it->shard, dtype, comm_.compute);
    it->gathered = RecordEvent(comm_.compute);
  }
}

void DistributedDataParallel::BeforeRead(Parameter& parameter) {
  Bucket& bucket = buckets_[bucket_of_.at(&parameter)];
  if (!bucket.gathered) return;
  WaitFor(allocator_.stream(), *bucket.gathered);
  bucket.gathered.reset();
}

absl::Status DistributedDataParallel::Health() const {
  for (const DataParallelModule& module : modules_) {
    for (const Communicator* group : {module.group, module.tp, module.embd}) {
      if (group != nullptr) MIMO_RETURN_IF_ERROR(group->Health());
    }
  }
  return absl::OkStatus();
}

absl::Status DistributedDataParallel::CheckReplicas() const {
  for (const DataParallelModule& module : modules_) {
    std::vector<Copy> replicated, tied, sharded;
    for (Parameter* p : module.parameters) {
      const Tensor& values = p->Values();
      replicated.push_back({p->name, values, 0});
      if (Tied(*p)) tied.push_back({p->name, values, 0});
      if (module.tp == nullptr) continue;
      // All shards are named: how many ranks have one differs between ranks.
      int64_t begin = 0;
      for (const Shard& shard : p->sharding.shards) {
        Tensor part;
        if (shard.copies > 1) {
          CHECK_EQ(p->sharding.dim, 0) << p->name;
          part = values.Rows(begin, begin + shard.size);
        }
        sharded.push_back({p->name, std::move(part),
                           module.tp->rank() - int64_t{shard.copy}});
        begin += shard.size;
      }
    }
    for (const auto& [group, copies] : {std::pair(module.group, &replicated),
                                        {module.embd, &tied},
                                        {module.tp, &sharded}}) {
      if (group == nullptr || group->size() == 1 || copies->empty()) continue;
      MIMO_RETURN_IF_ERROR(CheckCopies(*copies, *group, allocator_));
    }
  }
  return absl::OkStatus();
}

}  // namespace mimo
