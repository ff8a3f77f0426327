// Random grids against an enumeration written another way: every rank's
// coordinates by counting, then ranks sorted and grouped by those that differ.
#include <algorithm>
#include <iterator>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "comm/grid/rank_grid.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using Names = std::vector<std::string>;
using Lists = std::vector<std::vector<int>>;

struct Layout {
  std::vector<int> shape;
  Names names;
  int offset, world_size;

  int size() const {
    int size = 1;
    for (const int s : shape) size *= s;
    return size;
  }
};

// Coordinates of every rank in turn: an odometer whose first wheel is fastest.
Lists CountedCoordinates(const std::vector<int>& shape, int size) {
  Lists all = {std::vector<int>(shape.size(), 0)};
  while (static_cast<int>(all.size()) < size) {
    std::vector<int> next = all.back();
    for (size_t wheel = 0; ++next[wheel] == shape[wheel]; ++wheel)
      next[wheel] = 0;
    all.push_back(next);
  }
  return all;
}

// Groups keyed by the other coordinates, the last declared most significant;
// members keyed by the coordinates of `dims`, the first most significant.
Lists BruteForce(const Layout& layout, const Names& dims) {
  const Lists coordinates = CountedCoordinates(layout.shape, layout.size());
  std::map<std::vector<int>, std::map<std::vector<int>, int>> groups;
  for (int i = 0; i < layout.size(); ++i) {
    std::map<std::string, int> at;
    std::vector<int> others, own;
    for (size_t d = layout.names.size(); d-- > 0;) {
      at[layout.names[d]] = coordinates[i][d];
      if (std::count(dims.begin(), dims.end(), layout.names[d]) == 0)
        others.push_back(coordinates[i][d]);
    }
    for (const std::string& dim : dims) own.push_back(at.at(dim));
    groups[others][own] = layout.offset + i;
  }
  Lists lists;
  for (const auto& [others, members] : groups) {
    lists.emplace_back();
    for (const auto& [own, rank] : members) lists.back().push_back(rank);
  }
  return lists;
}

Lists ToLists(const RankGroups& groups) {
  Lists lists;
  for (int g = 0; g < groups.size(); ++g)
    lists.emplace_back(groups[g].begin(), groups[g].end());
  return lists;
}

class Random {
 public:
  int Below(int n) { return std::uniform_int_distribution<>(0, n - 1)(gen_); }
  template <typename T>
  void Shuffle(std::vector<T>& list) {
    std::shuffle(list.begin(), list.end(), gen_);
  }
  Layout MakeLayout() {
    Layout layout;
    const int dims = 1 + Below(6);
    for (int d = 0; d < dims; ++d) {
      layout.shape.push_back(1 + Below(dims > 4 ? 3 : 5));
      layout.names.push_back("d" + std::to_string(d));
    }
    Shuffle(layout.names);
    layout.offset = Below(3) == 0 ? 0 : Below(1000);
    layout.world_size = layout.offset + layout.size() + Below(10);
    return layout;
  }
  // Some of `names`, at least one, in any order.
  Names Some(Names names) {
    Shuffle(names);
    names.resize(1 + Below(names.size()));
    return names;
  }

 private:
  std::mt19937 gen_{20260407};
};

RankGrid Make(const Layout& l) {
  return *RankGrid::Create(l.shape, l.names, l.offset, l.world_size);
}

TEST(RankGridProperty, EnumerationsAreTheBruteForces) {
  Random random;
  for (int trial = 0; trial < 5000; ++trial) {
    const Layout layout = random.MakeLayout();
    const RankGrid grid = Make(layout);
    const Names dims = random.Some(layout.names);
    Names reversed;  // the last declared first
    for (auto name = layout.names.rbegin(); name != layout.names.rend(); ++name)
      if (std::count(dims.begin(), dims.end(), *name))
        reversed.push_back(*name);

    const Lists groups = ToLists(*grid.Groups(dims));
    ASSERT_EQ(ToLists(*grid.RawGroups(dims)), BruteForce(layout, dims));
    ASSERT_EQ(groups, BruteForce(layout, reversed));
    ASSERT_EQ(*grid.GroupSize(dims), static_cast<int>(groups[0].size()));

    // Every rank of the span once, ascending in and between groups.
    std::set<int> seen;
    for (const std::vector<int>& group : groups) {
      ASSERT_TRUE(std::is_sorted(group.begin(), group.end()));
      for (const int rank : group) {
        ASSERT_TRUE(grid.Contains(rank));
        ASSERT_TRUE(seen.insert(rank).second);
      }
    }
    ASSERT_EQ(static_cast<int>(seen.size()), layout.size());
    ASSERT_TRUE(std::is_sorted(groups.begin(), groups.end()));

    // One rank's group alone.
    const auto& some = groups[random.Below(groups.size())];
    const int member = some[random.Below(some.size())];
    ASSERT_EQ(*grid.GroupOf(member, dims), some);

    // Neither groups nor key depend on the order of the request.
    Names shuffled = dims;
    random.Shuffle(shuffled);
    ASSERT_EQ(ToLists(*grid.Groups(shuffled)), groups);
    std::string key = reversed.front();
    for (size_t i = 1; i < reversed.size(); ++i) key += "-" + reversed[i];
    ASSERT_EQ(*grid.Key(dims), key);
    ASSERT_EQ(*grid.Key(shuffled), key);

    // An offset shifts every rank.
    Layout at_zero = layout;
    at_zero.offset = 0;
    Lists shifted = ToLists(*Make(at_zero).Groups(dims));
    for (std::vector<int>& group : shifted)
      for (int& rank : group) rank += layout.offset;
    ASSERT_EQ(shifted, groups);
  }
}

TEST(RankGridProperty, CoordinatesCount) {
  Random random;
  for (int trial = 0; trial < 1000; ++trial) {
    const Layout layout = random.MakeLayout();
    const RankGrid grid = Make(layout);
    const Lists coordinates = CountedCoordinates(layout.shape, layout.size());
    for (int i = 0; i < layout.size(); ++i) {
      ASSERT_EQ(*grid.Coordinates(layout.offset + i), coordinates[i]);
    }
  }
}

// Another factorisation of the same number: its prime factors dealt out anew,
// mostly leaving the last dimensions as they are, which then can be shared.
Layout MakeView(Random& random, const Layout& base) {
  Layout view = base;
  const int kept = random.Below(base.shape.size() + 1);
  const int dealt = static_cast<int>(base.shape.size()) - kept;
  int product = 1;
  for (int d = 0; d < dealt; ++d) product *= base.shape[d];
  std::vector<int> shape(1 + random.Below(3), 1);
  for (int factor = 2; product > 1; ++factor)
    for (; product % factor == 0; product /= factor)
      shape[random.Below(shape.size())] *= factor;
  Names names;
  for (size_t d = 0; d < shape.size(); ++d)
    names.push_back(random.Below(4) == 0 && d < base.names.size() - kept
                        ? base.names[d]
                        : "v" + std::to_string(d));
  view.shape.erase(view.shape.begin(), view.shape.begin() + dealt);
  view.names.erase(view.names.begin(), view.names.begin() + dealt);
  view.shape.insert(view.shape.begin(), shape.begin(), shape.end());
  view.names.insert(view.names.begin(), names.begin(), names.end());
  return view;
}

TEST(RankGridProperty, ViewsShareWhatHasEqualGroups) {
  Random random;
  int accepted = 0, refused = 0, joint = 0;
  for (int trial = 0; trial < 5000; ++trial) {
    const Layout base = random.MakeLayout();
    const Layout view = MakeView(random, base);
    Names common, shared;
    for (const std::string& name : view.names)
      if (std::count(base.names.begin(), base.names.end(), name))
        common.push_back(name);
    if (!common.empty()) shared = random.Some(common);

    bool equal = true;
    for (const std::string& dim : shared)
      equal &= BruteForce(base, {dim}) == BruteForce(view, {dim});
    RankGrid grid = Make(base);
    const absl::Status status =
        grid.RegisterView("view", view.shape, view.names, shared);
    ASSERT_EQ(status.ok(), equal) << status;
    ++(equal ? accepted : refused);
    if (!equal) continue;

    const Names dims = random.Some(view.names);
    ASSERT_EQ(ToLists(*grid.RawGroups(dims, "view")), BruteForce(view, dims));
    const bool all_shared =
        std::all_of(dims.begin(), dims.end(), [&](const std::string& dim) {
          return std::count(shared.begin(), shared.end(), dim) > 0;
        });
    const std::string key = *grid.Key(dims, "view");
    ASSERT_EQ(key.find("view.") == 0, !all_shared) << key;
    if (all_shared) {
      ASSERT_EQ(key, *grid.Key(dims));
    }
    if (shared.size() > 1) {
      // Equal one by one, so equal together: nothing else need be checked.
      ASSERT_EQ(BruteForce(base, shared), BruteForce(view, shared));
      ++joint;
    }
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 100);
  EXPECT_GT(joint, 100);
}

}  // namespace
}  // namespace mimo
