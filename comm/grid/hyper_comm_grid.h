// HyperCommGrid: the communicators of a module's groups. Which ranks form a
// group is rank_grid.h's; here groups are made, found and ended.
//
// Every rank of the world makes the same Create calls in the same order, those
// outside the grid too. A rank that is in none of the groups made gets null.
// Keys whose groups are the same ranks, as "dp" and "dp-cp" where cp is 1,
// share one communicator, named after the first of them.
#ifndef MIMO_COMM_GRID_HYPER_COMM_GRID_H_
#define MIMO_COMM_GRID_HYPER_COMM_GRID_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "comm/base/communicator.h"
#include "comm/grid/rank_grid.h"

namespace mimo {

class HyperCommGrid {
 public:
  // `name`, the module's, begins the names of its groups. `world` has all ranks
  // of the job, and outlives the grid.
  HyperCommGrid(std::string name, RankGrid ranks, Communicator& world);
  ~HyperCommGrid();
  HyperCommGrid(const HyperCommGrid&) = delete;
  HyperCommGrid& operator=(const HyperCommGrid&) = delete;

  const std::string& name() const { return name_; }
  const RankGrid& ranks() const { return ranks_; }
  bool ContainsThisRank() const { return ranks_.Contains(world_.rank()); }

  // This rank's group of `dims`, one of ranks().Groups(dims, view), which are
  // all made by this call. Once a key: AlreadyExists. Errors of RankGrid, and
  // of the communicator.
  absl::StatusOr<Communicator*> Create(
      Dims dims, absl::string_view view = RankGrid::kBase);
  // FailedPrecondition before Create.
  absl::StatusOr<Communicator*> Get(
      Dims dims, absl::string_view view = RankGrid::kBase) const;

  // The same for groups that are not those of dimensions, under a key of the
  // caller's: "embd" of EndsOfEach(ranks().Groups({"pp"})). Disjoint groups.
  absl::StatusOr<Communicator*> CreateNamed(const std::string& key,
                                            const RankGroups& groups);
  absl::StatusOr<Communicator*> GetNamed(absl::string_view key) const;

  // Ends each group of this rank once. Groups may then be made anew. The
  // destructor does it too.
  void Destroy();

 private:
  struct Group {
    std::string key;
    RankGroups ranks;
    std::shared_ptr<Communicator> communicator;  // null if not a member
  };

  // `what` names the group in messages.
  absl::StatusOr<Communicator*> Make(const std::string& key,
                                     const std::string& what,
                                     RankGroups groups);
  absl::StatusOr<Communicator*> Find(absl::string_view key,
                                     const std::string& what) const;

  const std::string name_;
  const RankGrid ranks_;
  Communicator& world_;
  std::vector<Group> groups_;
};

}  // namespace mimo

#endif  // MIMO_COMM_GRID_HYPER_COMM_GRID_H_
