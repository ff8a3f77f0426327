// A module's groups, its experts' view among them, over ranks that are
// processes.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "comm/gloo/gloo_communicator.h"
#include "comm/grid/hyper_comm_grid.h"
#include "comm/testing/rank_processes.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

using Names = std::vector<std::string>;

// TP2 DP2 with experts ETP1 EP2 EDP2 on ranks 1 to 4 of five.
absl::Status EveryGroupSums(const Job& job, Store& store) {
  MIMO_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> world,
                        ConnectGloo(job, store));
  MIMO_ASSIGN_OR_RETURN(RankGrid ranks,
                        RankGrid::Create({2, 1, 2, 1}, {"tp", "cp", "dp", "pp"},
                                         1, world->size()));
  MIMO_RETURN_IF_ERROR(ranks.RegisterView(
      "expert", {1, 2, 2, 1}, {"expt_tp", "ep", "expt_dp", "pp"}, {"pp"}));
  HyperCommGrid grid("language", ranks, *world);
  struct Request {
    Names dims;
    std::string view;
  };
  for (const auto& [dims, view] :
       std::vector<Request>{{{"tp"}, "base"},
                            {{"dp"}, "base"},
                            {{"tp", "dp", "cp", "pp"}, "base"},
                            {{"ep"}, "expert"},
                            {{"ep", "expt_dp"}, "expert"},
                            {{"pp"}, "expert"}}) {
    MIMO_ASSIGN_OR_RETURN(Communicator * group, grid.Create(dims, view));
    const std::string what = absl::StrJoin(dims, "-");
    if ((group != nullptr) != grid.ContainsThisRank())
      return absl::InternalError(what + ": the wrong ranks are members");
    if (group == nullptr) continue;
    MIMO_ASSIGN_OR_RETURN(const std::vector<int> members,
                          ranks.GroupOf(job.rank, dims, view));
    int64_t sum = job.rank, expected = 0;
    for (const int member : members) expected += member;
    group->AllReduce(&sum, &sum, 1, DType::kInt64, ReduceOp::kSum, Stream());
    MIMO_RETURN_IF_ERROR(group->Health());
    if (group->members() != absl::MakeConstSpan(members) || sum != expected)
      return absl::InternalError(
          absl::StrCat(what, ": found sum ", sum, " over ",
                       absl::StrJoin(group->members(), ","), ", wanted ",
                       expected, " over ", absl::StrJoin(members, ",")));
  }
  grid.Destroy();
  if (grid.Get({"tp"}).ok()) return absl::InternalError("destroyed, yet there");
  world->Barrier(Stream());
  return world->Health();
}

TEST(HyperCommGridProcesses, EveryGroupSums) {
  RankProcesses ranks(5, "every_group_sums");
  const absl::Status status = ranks.Wait(absl::Seconds(60));
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace mimo

int main(int argc, char** argv) {
  mimo::RunRankIfAsked({{"every_group_sums", mimo::EveryGroupSums}});
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
