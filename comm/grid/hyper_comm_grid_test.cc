// Groups over threads: who is in them, that they work, and every refusal.
#include "comm/grid/hyper_comm_grid.h"

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/str_join.h"
#include "comm/base/planned_communicator.h"
#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Names = std::vector<std::string>;

RankGrid Dense(std::vector<int> shape, int offset, int world_size) {
  auto grid = RankGrid::Create(std::move(shape), {"tp", "cp", "dp", "pp"},
                               offset, world_size);
  CHECK_OK(grid.status());
  return *std::move(grid);
}

// TP2 DP2 PP2 with experts ETP1 EP2 EDP2 PP2 on the same eight ranks.
RankGrid WithExperts(int offset, int world_size) {
  RankGrid grid = Dense({2, 1, 2, 2}, offset, world_size);
  CHECK_OK(grid.RegisterView("expert", {1, 2, 2, 2},
                             {"expt_tp", "ep", "expt_dp", "pp"}, {"pp"}));
  return grid;
}

void ExpectAllOk(const std::vector<absl::Status>& results) {
  for (size_t rank = 0; rank < results.size(); ++rank)
    EXPECT_TRUE(results[rank].ok()) << "rank " << rank << ": " << results[rank];
}

// The group is `members`, this rank is in its place, and a sum over it is the
// sum of its members' world ranks.
void ExpectWorks(Communicator* group, const std::vector<int>& members,
                 int world_rank) {
  ASSERT_NE(group, nullptr);
  EXPECT_EQ(std::vector<int>(group->members().begin(), group->members().end()),
            members);
  EXPECT_EQ(members[group->rank()], world_rank);
  int64_t sum = world_rank, expected = 0;
  for (const int member : members) expected += member;
  group->AllReduce(&sum, &sum, 1, DType::kInt64, ReduceOp::kSum, Stream());
  EXPECT_EQ(sum, expected) << group->name();
  std::vector<int64_t> all(members.size());
  const int64_t mine = world_rank;
  group->AllGather(&mine, all.data(), 1, DType::kInt64, Stream());
  EXPECT_EQ(std::vector<int64_t>(members.begin(), members.end()), all);
}

TEST(HyperCommGrid, EveryCombinationWorksOnEverySize) {
  const std::vector<std::vector<int>> shapes = {
      {1, 1, 1, 1}, {2, 1, 1, 1}, {1, 3, 1, 1}, {2, 1, 2, 1},
      {2, 1, 3, 1}, {2, 2, 1, 2}, {1, 1, 2, 4}};
  for (const std::vector<int>& shape : shapes) {
    const int size = shape[0] * shape[1] * shape[2] * shape[3];
    SCOPED_TRACE(absl::StrJoin(shape, ","));
    ExpectAllOk(RunRanks(size, [&](Communicator& world) {
      HyperCommGrid grid("module", Dense(shape, 0, size), world);
      // By all groups' ranks, the first name of this one and its communicator.
      std::map<std::string, std::pair<std::string, Communicator*>> made;
      for (int set = 1; set < 16; ++set) {
        Names dims;
        for (int d = 0; d < 4; ++d)
          if (set >> d & 1) dims.push_back(Names{"dp", "pp", "tp", "cp"}[d]);
        MIMO_ASSIGN_OR_RETURN(Communicator * group, grid.Create(dims));
        ExpectWorks(group, *grid.ranks().GroupOf(world.rank(), dims),
                    world.rank());
        const auto& [name, first] =
            made.try_emplace(grid.ranks().Groups(dims)->ToString(),
                             "module/" + *grid.ranks().Key(dims), group)
                .first->second;
        EXPECT_EQ(group, first);
        EXPECT_EQ(group->name(), name);
        EXPECT_EQ(*grid.Get(dims), group);
      }
      return absl::OkStatus();
    }));
  }
}

TEST(HyperCommGrid, RanksOutsideTakePartAndHoldNull) {
  // Two modules on spans of their own, and rank 7 in neither.
  ExpectAllOk(RunRanks(8, [](Communicator& world) {
    HyperCommGrid vision("vision", Dense({1, 1, 3, 1}, 0, 8), world);
    HyperCommGrid language("language", Dense({2, 1, 2, 1}, 3, 8), world);
    for (HyperCommGrid* grid : {&vision, &language})
      for (const Names& dims : {Names{"tp"}, Names{"cp", "dp"}}) {
        MIMO_ASSIGN_OR_RETURN(Communicator * group, grid->Create(dims));
        EXPECT_EQ(*grid->Get(dims), group);
        if (grid->ContainsThisRank())
          ExpectWorks(group, *grid->ranks().GroupOf(world.rank(), dims),
                      world.rank());
        else
          EXPECT_EQ(group, nullptr);
      }
    EXPECT_EQ(vision.ContainsThisRank(), world.rank() < 3);
    EXPECT_EQ(language.ContainsThisRank(),
              3 <= world.rank() && world.rank() < 7);
    return absl::OkStatus();
  }));
}

TEST(HyperCommGrid, ViewsHaveGroupsOfTheirOwnAndShareTheBases) {
  ExpectAllOk(RunRanks(9, [](Communicator& world) {
    HyperCommGrid grid("language", WithExperts(1, 9), world);
    const bool inside = grid.ContainsThisRank();
    for (const Names& dims :
         {Names{"ep"}, Names{"expt_dp"}, Names{"expt_tp", "ep"},
          Names{"expt_tp", "ep", "pp"}}) {
      MIMO_ASSIGN_OR_RETURN(Communicator * group, grid.Create(dims, "expert"));
      EXPECT_EQ(group != nullptr, inside);
      if (inside)
        ExpectWorks(group, *grid.ranks().GroupOf(world.rank(), dims, "expert"),
                    world.rank());
    }
    // Made by the view's name for it, found by the base's, and once only.
    MIMO_ASSIGN_OR_RETURN(Communicator * pp, grid.Create({"pp"}, "expert"));
    EXPECT_EQ(*grid.Get({"pp"}), pp);
    EXPECT_EQ(*grid.Get({"pp"}, "expert"), pp);
    EXPECT_EQ(grid.Create({"pp"}).status().code(),
              absl::StatusCode::kAlreadyExists);
    EXPECT_EQ(grid.Create({"pp"}, "expert").status().code(),
              absl::StatusCode::kAlreadyExists);
    // The same ranks under a key of the view's own: one communicator.
    EXPECT_FALSE(grid.Get({"tp"}).ok());
    MIMO_ASSIGN_OR_RETURN(Communicator * tp, grid.Create({"tp"}));
    EXPECT_EQ(tp, *grid.Get({"ep"}, "expert"));
    MIMO_ASSIGN_OR_RETURN(Communicator * dp, grid.Create({"dp"}));
    EXPECT_EQ(dp != tp, inside);
    return absl::OkStatus();
  }));
}

// On ranks 4 to 7: two pipeline lines of two stages. On 0 to 3: of one stage.
TEST(HyperCommGrid, EmbeddingGroups) {
  ExpectAllOk(RunRanks(8, [](Communicator& world) {
    const int rank = world.rank();
    HyperCommGrid vision("vision", Dense({2, 1, 2, 1}, 0, 8), world);
    HyperCommGrid language("language", Dense({2, 1, 1, 2}, 4, 8), world);
    for (HyperCommGrid* grid : {&vision, &language}) {
      const RankGroups lines = *grid->ranks().Groups({"pp"});
      MIMO_RETURN_IF_ERROR(
          grid->CreateNamed("pos_embd", FirstOfEach(lines)).status());
      MIMO_RETURN_IF_ERROR(
          grid->CreateNamed("embd", EndsOfEach(lines)).status());
      EXPECT_EQ(grid->CreateNamed("embd", EndsOfEach(lines)).status().code(),
                absl::StatusCode::kAlreadyExists);
      EXPECT_FALSE(grid->GetNamed("other").ok());
    }
    if (rank < 4) {
      ExpectWorks(*vision.GetNamed("pos_embd"), {rank}, rank);
      ExpectWorks(*vision.GetNamed("embd"), {rank}, rank);
      EXPECT_EQ(*language.GetNamed("embd"), nullptr);
      return absl::OkStatus();
    }
    const int first = rank < 6 ? rank : rank - 2;
    ExpectWorks(*language.GetNamed("embd"), {first, first + 2}, rank);
    if (rank < 6)
      ExpectWorks(*language.GetNamed("pos_embd"), {rank}, rank);
    else
      EXPECT_EQ(*language.GetNamed("pos_embd"), nullptr);
    return absl::OkStatus();
  }));
}

TEST(HyperCommGrid, Refusals) {
  ExpectAllOk(RunRanks(8, [](Communicator& world) {
    HyperCommGrid grid("language", WithExperts(0, 8), world);
    const auto expect = [&](const absl::StatusOr<Communicator*>& found,
                            absl::StatusCode code, const std::string& words) {
      EXPECT_EQ(found.status().code(), code) << words;
      EXPECT_THAT(found.status().message(), HasSubstr(words));
    };
    expect(grid.Get({"dp", "tp"}), absl::StatusCode::kFailedPrecondition,
           "grid 'language': group 'dp-tp' hasn't been created. Call Create "
           "first");
    expect(grid.Get({"ep"}, "expert"), absl::StatusCode::kFailedPrecondition,
           "group 'expert.ep' for view 'expert' hasn't been created");
    MIMO_RETURN_IF_ERROR(grid.Create({"tp", "dp"}).status());
    MIMO_RETURN_IF_ERROR(grid.Create({"ep"}, "expert").status());
    expect(grid.Create({"dp", "tp"}), absl::StatusCode::kAlreadyExists,
           "grid 'language': group 'dp-tp' has already been created");
    expect(grid.Create({"ep"}, "expert"), absl::StatusCode::kAlreadyExists,
           "group 'expert.ep' for view 'expert' has already been created");
    for (const bool create : {false, true}) {
      const auto ask = [&](const Names& dims, const std::string& view) {
        return create ? grid.Create(dims, view) : grid.Get(dims, view);
      };
      expect(ask({"ep"}, "base"), absl::StatusCode::kInvalidArgument,
             "'ep' is not in view 'base' with dim_names [tp, cp, dp, pp]");
      expect(ask({"tp"}, "expert"), absl::StatusCode::kInvalidArgument,
             "'tp' is not in view 'expert'");
      expect(ask({"tp"}, "other"), absl::StatusCode::kNotFound,
             "View 'other' is not registered; registered views: 'base', "
             "'expert'");
    }
    // A refusal is no call of the world's: they all still agree.
    int64_t one = 1;
    world.AllReduce(&one, &one, 1, DType::kInt64, ReduceOp::kSum, Stream());
    EXPECT_EQ(one, 8);
    return absl::OkStatus();
  }));
}

TEST(HyperCommGrid, GroupsCanBeMadeAnewAfterDestroy) {
  ExpectAllOk(RunRanks(4, [](Communicator& world) {
    HyperCommGrid grid("module", Dense({2, 1, 2, 1}, 0, 4), world);
    for (int round = 0; round < 3; ++round) {
      MIMO_ASSIGN_OR_RETURN(Communicator * dp, grid.Create({"dp"}));
      ExpectWorks(dp, *grid.ranks().GroupOf(world.rank(), {"dp"}),
                  world.rank());
      grid.Destroy();
      EXPECT_FALSE(grid.Get({"dp"}).ok());
      grid.Destroy();  // nothing is left to end
    }
    return absl::OkStatus();
  }));
}

TEST(HyperCommGridDeathTest, AGridOfAnotherWorld) {
  EXPECT_DEATH(
      RunRanks(2,
               [](Communicator& world) {
                 HyperCommGrid("module", Dense({4, 1, 1, 1}, 0, 4), world);
                 return absl::OkStatus();
               }),
      "grid module: ranks found and wanted");
}

// A world that notes what is split and in which order parts end.
class NotingCommunicator : public PlannedCommunicator {
 public:
  struct Notes {
    std::vector<std::vector<std::vector<int>>> splits;
    Names ended;
    absl::Status fails;
  };
  NotingCommunicator(std::string name, std::vector<int> members, int rank,
                     Notes* notes)
      : PlannedCommunicator(std::move(name), std::move(members), rank),
        notes_(notes) {}
  ~NotingCommunicator() override { notes_->ended.push_back(name()); }

 protected:
  absl::StatusOr<std::unique_ptr<Communicator>> DoSplit(
      const std::string& name,
      absl::Span<const std::vector<int>> groups) override {
    MIMO_RETURN_IF_ERROR(notes_->fails);
    notes_->splits.emplace_back(groups.begin(), groups.end());
    for (const std::vector<int>& group : groups)
      for (size_t i = 0; i < group.size(); ++i)
        if (group[i] == rank())
          return std::make_unique<NotingCommunicator>(name, group, i, notes_);
    return nullptr;
  }

 private:
  Notes* const notes_;
};

TEST(HyperCommGrid, OneSplitForTheSameRanksAndEachEndsOnce) {
  NotingCommunicator::Notes notes;
  {
    NotingCommunicator world("world", {0, 1, 2, 3, 4, 5, 6, 7}, 0, &notes);
    {
      HyperCommGrid grid("language", WithExperts(0, 8), world);
      CHECK_OK(grid.Create({"tp", "cp"}).status());
      CHECK_OK(grid.Create({"pp"}, "expert").status());
      CHECK_OK(grid.Create({"tp"}).status());            // as cp-tp
      CHECK_OK(grid.Create({"ep"}, "expert").status());  // as well
      CHECK_OK(grid.Create({"expt_dp"}, "expert").status());
      // Not a member of this one.
      CHECK_OK(grid.CreateNamed("last", {1, {7}}).status());
      EXPECT_EQ(*grid.GetNamed("last"), nullptr);
      EXPECT_EQ(*grid.Get({"pp"}), *grid.Get({"pp"}, "expert"));
      EXPECT_THAT(notes.ended, ElementsAre());
      // One that cannot be made is not there, and can be tried again.
      notes.fails = absl::UnavailableError("rank 3 has ended");
      EXPECT_EQ(grid.Create({"tp", "pp"}).status(), notes.fails);
      EXPECT_FALSE(grid.Get({"tp", "pp"}).ok());
    }
    EXPECT_THAT(notes.ended, ElementsAre("language/pp", "language/cp-tp",
                                         "language/expert.expt_dp"));
    EXPECT_THAT(notes.splits,
                ElementsAre(ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3),
                                        ElementsAre(4, 5), ElementsAre(6, 7)),
                            ElementsAre(ElementsAre(0, 4), ElementsAre(1, 5),
                                        ElementsAre(2, 6), ElementsAre(3, 7)),
                            ElementsAre(ElementsAre(0, 2), ElementsAre(1, 3),
                                        ElementsAre(4, 6), ElementsAre(5, 7)),
                            ElementsAre(ElementsAre(7))));
  }
}

}  // namespace
}  // namespace mimo
