#include "mimo/nn/module.h"

#include <algorithm>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/random/philox.h"

namespace mimo {
namespace {

// FNV-1a: a hash that is the same on every machine and in every run.
uint64_t StableHash(absl::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

}  // namespace

BuildContext BuildContext::Child(absl::string_view name) const {
  BuildContext child = *this;
  child.path = path.empty() ? std::string(name) : absl::StrCat(path, ".", name);
  return child;
}

Shard PartOf(int64_t size, int ranks, int rank) {
  const int64_t begin = size * rank / ranks;
  return {begin, size * (rank + 1) / ranks - begin};
}

std::vector<Parameter*> Module::Parameters() const {
  std::vector<Parameter*> parameters;
  Collect(parameters);
  return parameters;
}

void Module::Collect(std::vector<Parameter*>& out) const {
  for (const auto& parameter : parameters_) out.push_back(parameter.get());
  for (const auto& child : children_) child->Collect(out);
}

void Module::Freeze() {
  for (Parameter* parameter : Parameters()) {
    parameter->frozen = true;
    parameter->main_grad = Tensor();
  }
}

bool Module::Trainable() const {
  const std::vector<Parameter*> all = Parameters();
  return std::any_of(all.begin(), all.end(),
                     [](const Parameter* p) { return !p->frozen; });
}

Parameter& Module::AddParameter(absl::string_view name, Shape whole, Init init,
                                Sharding sharding) {
  const int dim = sharding.dim;
  std::vector<Shard>& shards = sharding.shards;
  if (shards.empty()) {
    shards = {{.begin = 0,
               .size = whole[dim],
               .copies = build_.parallel.tp_size(),
               .copy = build_.parallel.tp_rank()}};
  }
  Shape shape = whole;
  shape[dim] = 0;
  for (const Shard& shard : shards) shape[dim] += shard.size;
  auto parameter = std::make_unique<Parameter>();
  parameter->name = build_.Child(name).path;
  parameter->frozen = !build_.trainable;
  const auto make = [&](DType dtype) {
    if (build_.meta) return Tensor::Meta(shape, dtype);
    const AllocationTag tag(*build_.allocator, build_.path);
    return Tensor(*build_.allocator, shape, dtype);
  };
  parameter->data = make(build_.dtype);
  if (build_.trainable)
    parameter->main_grad = make(AccumulatorOf(build_.dtype));
  if (!build_.meta && build_.initialize) {
    const auto sizes = absl::MakeConstSpan(whole);
    const int64_t outer = NumElements(sizes.first(dim));
    const int64_t inner = NumElements(sizes.subspan(dim + 1));
    CHECK(outer == 1 || shards.size() == 1)
        << parameter->name << ": several shards of dimension " << dim;
    char* out = static_cast<char*>(parameter->data.data());
    for (const Shard& shard : shards) {
      const int64_t columns = shard.size * inner;
      kernels::FillNormal({.out = out,
                           .size = outer * columns,
                           .seed = build_.seed,
                           .stream = StableHash(parameter->name),
                           .offset = static_cast<uint64_t>(shard.begin * inner),
                           .columns = columns,
                           .stride = whole[dim] * inner,
                           .dtype = build_.dtype},
                          init.mean, init.std, build_.allocator->stream());
      out += columns * SizeOf(build_.dtype);
    }
  }
  parameter->whole = std::move(whole);
  parameter->sharding = std::move(sharding);
  parameters_.push_back(std::move(parameter));
  return *parameters_.back();
}

}  // namespace mimo
