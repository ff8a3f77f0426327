// A world of one thread that notes what a rank of it would ask for, so that the
// groups of worlds of any size can be checked rank by rank.
#ifndef MIMO_MODELS_INFRA_RECORDING_WORLD_H_
#define MIMO_MODELS_INFRA_RECORDING_WORLD_H_

#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/log/log.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/base/communicator.h"

namespace mimo {

class RecordingWorld final : public Communicator {
 public:
  struct Split {
    std::string name;
    std::vector<std::vector<int>> groups;
    bool operator==(const Split&) const = default;
  };

  RecordingWorld(int rank, int size)
      : RecordingWorld("world", Iota(size), rank, std::make_shared<int>(-1)) {}
  ~RecordingWorld() override {
    Retire();
    --*alive_;
  }

  const std::vector<Split>& splits() const { return splits_; }
  int alive() const { return *alive_; }  // communicators it was split into
  void FailFrom(int split) { fail_from_ = split; }

 private:
  RecordingWorld(std::string name, std::vector<int> members, int rank,
                 std::shared_ptr<int> alive)
      : Communicator(std::move(name), std::move(members), rank),
        alive_(std::move(alive)) {
    ++*alive_;
  }

  static std::vector<int> Iota(int size) {
    std::vector<int> ranks(size);
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }
  [[noreturn]] static void Refuse() {
    LOG(FATAL) << "there are no other ranks";
  }

  void DoAllReduce(const void*, void*, int64_t, DType, ReduceOp,
                   Stream) override {
    Refuse();
  }
  void DoAllGather(const void*, void*, int64_t, DType, Stream) override {
    Refuse();
  }
  void DoReduceScatter(const void*, void*, int64_t, DType, ReduceOp,
                       Stream) override {
    Refuse();
  }
  void DoBroadcast(void*, int64_t, DType, int, Stream) override { Refuse(); }
  void DoAllToAll(const void*, absl::Span<const int64_t>, void*,
                  absl::Span<const int64_t>, DType, Stream) override {
    Refuse();
  }
  void DoExchange(absl::Span<const Transfer>, Stream) override { Refuse(); }
  void DoBarrier(Stream) override { Refuse(); }
  void DoAbort(const absl::Status&) override {}
  absl::StatusOr<std::unique_ptr<Communicator>> DoSplit(
      const std::string& name,
      absl::Span<const std::vector<int>> groups) override {
    if (static_cast<int>(splits_.size()) == fail_from_) {
      return absl::UnavailableError("rank 1 has ended");
    }
    splits_.push_back({name, {groups.begin(), groups.end()}});
    for (const std::vector<int>& group : groups) {
      for (size_t i = 0; i < group.size(); ++i) {
        if (group[i] == rank()) {
          return std::unique_ptr<Communicator>(
              new RecordingWorld(name, group, i, alive_));
        }
      }
    }
    return nullptr;
  }

  const std::shared_ptr<int> alive_;
  std::vector<Split> splits_;
  int fail_from_ = -1;
};

}  // namespace mimo

#endif  // MIMO_MODELS_INFRA_RECORDING_WORLD_H_
