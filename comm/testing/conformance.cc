#include "comm/testing/conformance.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "comm/testing/conformance_checker.h"
#include "comm/testing/device_buffer.h"
#include "kernels/base/dispatch.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr ReduceOp kOps[] = {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin};

template <typename T>
void CheckAllOperations(Checker& checker, int64_t count) {
  for (const bool in_place : {false, true}) {
    for (const ReduceOp op : kOps) {
      checker.AllReduce<T>(count, op, in_place);
      checker.ReduceScatter<T>(count, op, in_place);
    }
    checker.AllGather<T>(count, in_place);
  }
  checker.Broadcast<T>(count, 0);
  checker.Broadcast<T>(count, checker.size() - 1);
  checker.AllToAll<T>(count, /*even=*/true);
  checker.AllToAll<T>(count, /*even=*/false);
  checker.Exchange<T>(count);
  checker.SendRecv<T>(count);
  checker.Barrier();
}

template <typename T>
void CheckLarge(Checker& checker, int64_t count, ReduceOp op, bool in_place) {
  const int64_t part = count / checker.size();
  checker.AllReduce<T>(count, op, in_place);
  checker.ReduceScatter<T>(part, op, in_place);
  checker.AllGather<T>(part, in_place);
  checker.Broadcast<T>(count, checker.size() / 2);
  checker.AllToAll<T>(part, /*even=*/in_place);
  checker.Exchange<T>(part);
  checker.SendRecv<T>(count);
}

template <typename T>
void CheckOneAtRandom(Checker& checker, uint64_t random) {
  const auto Draw = [&](uint64_t n) {
    random = Mix(random);
    return random % n;
  };
  const int64_t count = Draw(4) == 0 ? Draw(3) : Draw(3000);
  const ReduceOp op = kOps[Draw(3)];
  const bool yes = Draw(2);
  switch (Draw(8)) {
    case 0:
      return checker.AllReduce<T>(count, op, yes);
    case 1:
      return checker.ReduceScatter<T>(count, op, yes);
    case 2:
      return checker.AllGather<T>(count, yes);
    case 3:
      return checker.Broadcast<T>(count, Draw(checker.size()));
    case 4:
      return checker.AllToAll<T>(count, yes);
    case 5:
      return checker.Exchange<T>(count);
    case 6:
      return checker.SendRecv<T>(count);
    default:
      return checker.Barrier();
  }
}

// Splits into `groups` and checks what this rank got.
absl::StatusOr<std::unique_ptr<Communicator>> CheckSplit(
    Communicator& parent, const std::string& name,
    const std::vector<std::vector<int>>& groups) {
  MIMO_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> part,
                        parent.Split(name, groups));
  std::vector<int> members;  // of my group, ranks of the world
  int rank = -1;
  for (const std::vector<int>& group : groups)
    for (size_t i = 0; i < group.size(); ++i)
      if (group[i] == parent.rank()) {
        rank = static_cast<int>(i);
        for (int member : group) members.push_back(parent.members()[member]);
      }
  const bool right = rank < 0 ? part == nullptr
                              : part != nullptr && part->rank() == rank &&
                                    part->name() == name &&
                                    part->members() == members;
  if (!right)
    return absl::DataLossError(
        absl::StrCat("split ", name, ": found another group than rank ", rank,
                     " of [", absl::StrJoin(members, ", "), "]"));
  return part;
}

// All ranks' verdict: this rank's error, another's, or a failed world.
absl::Status Verdict(Communicator& world, Stream stream, absl::Status error) {
  DeviceBuffer buffer(stream);
  int32_t* bad =
      buffer.Set(std::vector<int32_t>{error.ok() ? 0 : world.rank() + 1});
  world.AllReduce(bad, bad, 1, DType::kInt32, ReduceOp::kMax, stream);
  const int32_t worst = buffer.Get<int32_t>()[0];
  if (!error.ok()) return error;
  if (!world.Health().ok()) return world.Health();
  if (worst > 0)
    return absl::DataLossError(
        absl::StrCat("rank ", worst - 1, " found an error"));
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckConformance(Communicator& world, Stream stream,
                              const ConformanceOptions& options) {
  Checker checker(stream);
  for (const int size : options.group_sizes) {
    if (size > world.size()) continue;
    // Of even sizes the last rank comes first.
    std::vector<std::vector<int>> groups;
    for (int begin = 0; begin + size <= world.size(); begin += size) {
      std::vector<int>& group = groups.emplace_back();
      for (int i = 0; i < size; ++i)
        group.push_back(begin + (size % 2 == 0 ? size - 1 - i : i));
    }
    MIMO_ASSIGN_OR_RETURN(
        const std::unique_ptr<Communicator> group,
        CheckSplit(world, absl::StrCat("groups of ", size), groups));
    if (group == nullptr) continue;
    checker.Enter(group.get(), Mix(options.seed + size));
    for (size_t i = 0; i < options.dtypes.size(); ++i)
      DispatchDType(options.dtypes[i], [&]<typename T>() {
        for (const int64_t count : options.counts)
          CheckAllOperations<T>(checker, count);
        if (options.large_count > 0)
          CheckLarge<T>(checker, options.large_count, kOps[(i + size) % 3],
                        /*in_place=*/(i + size) % 2);
      });
    // A group's group.
    std::vector<int> odd, even;
    for (int i = 0; i < size; ++i) (i % 2 ? odd : even).push_back(i);
    std::vector<std::vector<int>> halves = {even};
    if (!odd.empty()) halves.push_back(odd);
    MIMO_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> half,
                          CheckSplit(*group, "half", halves));
    checker.Enter(half.get(), Mix(options.seed - size));
    checker.AllReduce<int32_t>(7, ReduceOp::kSum, /*in_place=*/false);
    MIMO_RETURN_IF_ERROR(group->Health());
  }
  return Verdict(world, stream, checker.error());
}

absl::Status CheckRandomOperations(Communicator& world, Stream stream,
                                   int rounds, uint64_t seed) {
  // The world's ranks backwards, in pairs, and the odd ones.
  std::vector<int> backwards, odd;
  std::vector<std::vector<int>> pairs;
  for (int i = world.size() - 1; i >= 0; --i) {
    backwards.push_back(i);
    if (i % 2) odd.push_back(i);
    if (i % 2) pairs.push_back({i - 1, i});
  }
  std::vector<std::unique_ptr<Communicator>> groups;
  for (const auto& split : {std::vector<std::vector<int>>{backwards}, pairs,
                            std::vector<std::vector<int>>{odd}}) {
    if (split.empty() || split[0].empty()) continue;
    MIMO_ASSIGN_OR_RETURN(
        groups.emplace_back(),
        CheckSplit(world, absl::StrCat("split ", groups.size()), split));
  }
  Checker checker(stream);
  for (int round = 0; round < rounds; ++round) {
    const uint64_t random = Mix(Mix(seed) + round);
    Communicator* group = groups[random % groups.size()].get();
    if (group == nullptr) continue;
    checker.Enter(group, random);
    DispatchDType(static_cast<DType>(random / 64 % 7),
                  [&]<typename T>() { CheckOneAtRandom<T>(checker, random); });
    if (!group->Health().ok()) break;
  }
  return Verdict(world, stream, checker.error());
}

}  // namespace mimo
