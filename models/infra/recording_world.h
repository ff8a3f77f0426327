// A world of one thread that notes what a rank of it would ask for, so that the
// groups of worlds of any size can be checked rank by rank.
#ifndef MIMO_MODELS_INFRA_RECORDING_WORLD_H_
#define MIMO_MODELS_INFRA_RECORDING_WORLD_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/base/planned_communicator.h"

namespace mimo {

class RecordingWorld final : public PlannedCommunicator {
 public:
  struct Split {
    std::string name;
    std::vector<std::vector<int>> groups;
    bool operator==(const Split&) const = default;
  };

  using PlannedCommunicator::PlannedCommunicator;

  const std::vector<Split>& splits() const { return splits_; }
  int alive() const { return *alive_; }  // communicators it was split into
  void FailFrom(int split) { fail_from_ = split; }

 private:
  class Part final : public PlannedCommunicator {
   public:
    Part(std::string name, std::vector<int> members, int rank,
         std::shared_ptr<int> alive)
        : PlannedCommunicator(std::move(name), std::move(members), rank),
          alive_(std::move(alive)) {
      ++*alive_;
    }
    ~Part() override { --*alive_; }

   private:
    const std::shared_ptr<int> alive_;
  };

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
          return std::make_unique<Part>(name, group, i, alive_);
        }
      }
    }
    return nullptr;
  }

  const std::shared_ptr<int> alive_ = std::make_shared<int>(0);
  std::vector<Split> splits_;
  int fail_from_ = -1;
};

}  // namespace mimo

#endif  // MIMO_MODELS_INFRA_RECORDING_WORLD_H_
