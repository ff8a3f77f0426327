// RankGrid: which ranks of the world a module has, and which of them form the
// groups of any of its dimensions. Arithmetic alone: no process, no messages.
//
// A grid of shape [s0, s1, ..] and dimension names [d0, d1, ..] has the ranks
//   offset + c0 + s0 * (c1 + s1 * (c2 + ..)),   0 <= ci < si,
// so the first-named dimension varies fastest. The group of a rank in some
// dimensions is all ranks that differ from it in those alone.
//
// A view is a second factorisation of the same ranks, as of the experts of a
// module. Dimensions it shares with the base factorisation name the same
// groups, which then have the base's key; the others are the view's alone.
//
// Errors are a user's mistakes: InvalidArgument, OutOfRange, AlreadyExists,
// NotFound. A rank outside the grid is the caller's and fatal.
// Source: Megatron-Core, hyper_comm_grid.py (order, keys, rules).
#ifndef MIMO_COMM_GRID_RANK_GRID_H_
#define MIMO_COMM_GRID_RANK_GRID_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mimo {

// Groups of one size, one behind another in one array.
struct RankGroups {
  int group_size = 1;
  std::vector<int> ranks;  // [number of groups, group_size]

  int size() const { return static_cast<int>(ranks.size()) / group_size; }
  absl::Span<const int> operator[](int group) const {
    return absl::MakeConstSpan(ranks).subspan(group * size_t(group_size),
                                              group_size);
  }
  bool operator==(const RankGroups&) const = default;
  // "[0,1] [2,3]"; of more than 16 groups the first 16 and how many there are.
  std::string ToString() const;
};

// The first rank of each group. Of pipeline lines: who has position embeddings.
RankGroups FirstOfEach(const RankGroups& groups);
// The first and the last of each, or the one where they are one. Of pipeline
// lines: who shares the word embeddings.
RankGroups EndsOfEach(const RankGroups& groups);

// Names of dimensions, in any order.
using Dims = absl::Span<const std::string>;

class RankGrid {
 public:
  static constexpr absl::string_view kBase = "base";

  // Names consist of letters, digits and '_', as keys are made of them.
  static absl::StatusOr<RankGrid> Create(std::vector<int> shape,
                                         std::vector<std::string> dim_names,
                                         int rank_offset, int world_size);
  // `shared_dims` are named in both and have the same groups in both.
  absl::Status RegisterView(const std::string& name, std::vector<int> shape,
                            std::vector<std::string> dim_names,
                            std::vector<std::string> shared_dims);

  int rank_offset() const { return rank_offset_; }
  int size() const { return size_; }
  const std::vector<std::string>& dim_names() const {  // of the base
    return views_.front().dim_names;
  }
  bool Contains(int rank) const {
    return rank_offset_ <= rank && rank < rank_offset_ + size_;
  }

  // A rank's coordinates, in the order of the view's names.
  absl::StatusOr<std::vector<int>> Coordinates(
      int rank, absl::string_view view = kBase) const;

  // The name of the groups of `dims`: the last declared first, "dp-tp"; of a
  // view "expert.expt_dp-ep" unless all of `dims` are shared.
  absl::StatusOr<std::string> Key(Dims dims,
                                  absl::string_view view = kBase) const;
  // Ranks in a group of `dims`: the product of their sizes.
  absl::StatusOr<int> GroupSize(Dims dims,
                                absl::string_view view = kBase) const;
  // All groups of `dims`, which partition the grid's ranks. Members ascend, and
  // so do the groups' first members. The order of `dims` does not matter.
  absl::StatusOr<RankGroups> Groups(Dims dims,
                                    absl::string_view view = kBase) const;
  // The same groups with members in row-major order of `dims` as given: the
  // first slowest, the last fastest.
  absl::StatusOr<RankGroups> RawGroups(Dims dims,
                                       absl::string_view view = kBase) const;
  // The group of Groups() that `rank` is in, without making the others.
  absl::StatusOr<std::vector<int>> GroupOf(
      int rank, Dims dims, absl::string_view view = kBase) const;

 private:
  struct View {
    std::string name;
    std::vector<int> shape;
    std::vector<std::string> dim_names, shared_dims;
    std::vector<int> stride;  // [dims] ranks from one coordinate to the next
  };
  // Some dimensions of a view, by their places in it.
  struct Selection {
    const View* view;
    std::vector<int> dims;
  };

  static View MakeView(std::string name, std::vector<int> shape,
                       std::vector<std::string> dim_names,
                       std::vector<std::string> shared_dims);
  absl::StatusOr<const View*> FindView(absl::string_view name) const;
  // In the order of `dims`, or, `canonical`, the last declared first.
  absl::StatusOr<Selection> Select(Dims dims, absl::string_view view,
                                   bool canonical) const;
  RankGroups Enumerate(const Selection& selection) const;

  int rank_offset_ = 0, size_ = 0;
  std::vector<View> views_;  // the base first
};

}  // namespace mimo

#endif  // MIMO_COMM_GRID_RANK_GRID_H_
