// What the tests of parallel modules share: one rank's values beside those of
// the whole.
#ifndef MIMO_MIMO_NN_PARALLEL_TESTING_H_
#define MIMO_MIMO_NN_PARALLEL_TESTING_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/testing/testing.h"
#include "mimo/nn/parameter.h"
#include "mimo/tensor/tensor.h"

namespace mimo {

using Values = std::vector<double>;

// Of a float32 or float64 tensor in host memory.
inline Values ValuesOf(const Tensor& tensor) {
  if (tensor.dtype() == DType::kFloat64) {
    const auto span = tensor.span<double>();
    return {span.begin(), span.end()};
  }
  const auto span = tensor.span<float>();
  return {span.begin(), span.end()};
}

// Numbers in [-1, 1), the same in both dtypes.
inline Tensor RandomTensor(Allocator& allocator, const Shape& shape,
                           DType dtype, uint32_t seed) {
  const int64_t n = NumElements(shape);
  if (dtype == DType::kFloat64)
    return Tensor::From<double>(allocator, shape,
                                RandomVector<double>(n, seed));
  return Tensor::From<float>(allocator, shape, RandomVector<float>(n, seed));
}

// The elements of `whole`, values of the parameter on one rank, that this rank
// has.
inline Values PartOfWhole(const Values& whole, const Parameter& parameter) {
  const int dim = parameter.sharding.dim;
  const auto sizes = absl::MakeConstSpan(parameter.whole);
  const int64_t outer = NumElements(sizes.first(dim));
  const int64_t inner = NumElements(sizes.subspan(dim + 1));
  Values part;
  for (int64_t o = 0; o < outer; ++o) {
    for (const Shard& shard : parameter.sharding.shards) {
      const auto begin = whole.begin() + (o * sizes[dim] + shard.begin) * inner;
      part.insert(part.end(), begin, begin + shard.size * inner);
    }
  }
  return part;
}

// The step's gradients by name, of parameters that are not frozen.
inline std::map<std::string, Values> GradientsOf(
    const std::vector<Parameter*>& parameters) {
  std::map<std::string, Values> gradients;
  for (Parameter* p : parameters)
    if (!p->frozen) gradients[p->name] = ValuesOf(p->Grad());
  return gradients;
}

// Expects this rank's gradients to be its part of those of one rank, within
// `tolerance` in relative L2, and the stages of `pp`, or this rank without one,
// to have all of them.
inline void ExpectPartsOf(const std::map<std::string, Values>& whole,
                          const std::vector<Parameter*>& parameters,
                          double tolerance, const std::string& what,
                          Communicator* pp = nullptr) {
  int64_t trained = 0;
  for (Parameter* p : parameters) {
    if (p->frozen) continue;
    ++trained;
    EXPECT_LT(
        RelativeL2(ValuesOf(p->Grad()), PartOfWhole(whole.at(p->name), *p)),
        tolerance)
        << what << ": " << p->name;
  }
  if (pp != nullptr)
    pp->AllReduce(&trained, &trained, 1, DType::kInt64, ReduceOp::kSum,
                  Stream());
  EXPECT_EQ(trained, static_cast<int64_t>(whole.size())) << what;
}

// Runs `body` on every rank of a new group of threads.
inline void OnRanks(int size, absl::FunctionRef<void(Communicator&)> body) {
  for (const absl::Status& status : RunRanks(size, [&](Communicator& group) {
         body(group);
         return absl::OkStatus();
       }))
    EXPECT_TRUE(status.ok()) << status;
}

}  // namespace mimo

#endif  // MIMO_MIMO_NN_PARALLEL_TESTING_H_
