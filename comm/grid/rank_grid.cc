#include "comm/grid/rank_grid.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

template <typename List>
std::string Bracketed(const List& list) {
  return absl::StrCat("[", absl::StrJoin(list, ", "), "]");
}

// The place of `name` in `names`, or -1.
int Find(const std::vector<std::string>& names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  return found == names.end() ? -1 : static_cast<int>(found - names.begin());
}

bool HasDuplicates(Dims names) {
  std::vector<std::string> sorted(names.begin(), names.end());
  std::sort(sorted.begin(), sorted.end());
  return std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
}

// `what` is "the grid" or a view, for messages.
absl::Status CheckDimensions(const std::string& what,
                             const std::vector<int>& shape,
                             const std::vector<std::string>& dim_names) {
  if (shape.size() != dim_names.size())
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": len(shape) ", shape.size(), " != len(dim_names) ",
                     dim_names.size()));
  if (HasDuplicates(dim_names))
    return absl::InvalidArgumentError(
        absl::StrCat(what, " has duplicate dim_names ", Bracketed(dim_names)));
  if (std::any_of(shape.begin(), shape.end(), [](int s) { return s < 1; }))
    return absl::InvalidArgumentError(absl::StrCat(
        what, ": shape must be positive ints, got ", Bracketed(shape)));
  for (const std::string& name : dim_names)
    if (name.empty() || !std::all_of(name.begin(), name.end(), [](char c) {
          return absl::ascii_isalnum(c) || c == '_';
        }))
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": dim name '", name,
                       "' is not made of letters, digits and '_'"));
  return absl::OkStatus();
}

// The product, or some number past every int.
int64_t Product(const std::vector<int>& shape) {
  int64_t product = 1;
  for (const int size : shape)
    product = std::min(product * size, int64_t{1} << 31);
  return product;
}

// Ranks from `first`, one for every combination of the coordinates of `dims`,
// of which the last is fastest.
std::vector<int> Combinations(int first, const std::vector<int>& dims,
                              const std::vector<int>& shape,
                              const std::vector<int>& stride) {
  std::vector<int> ranks = {first};
  for (const int dim : dims) {
    std::vector<int> next;
    next.reserve(ranks.size() * shape[dim]);
    for (const int rank : ranks)
      for (int c = 0; c < shape[dim]; ++c)
        next.push_back(rank + c * stride[dim]);
    ranks = std::move(next);
  }
  return ranks;
}

}  // namespace

std::string RankGroups::ToString() const {
  constexpr int kShown = 16, kShownRanks = 64;
  std::vector<std::string> parts;
  for (int group = 0; group < std::min(size(), kShown); ++group) {
    parts.push_back(absl::StrCat(
        "[", absl::StrJoin((*this)[group].subspan(0, kShownRanks), ","),
        group_size > kShownRanks ? absl::StrCat(",... (", group_size, " ranks)")
                                 : "",
        "]"));
  }
  if (size() > kShown)
    parts.push_back(absl::StrCat("... (", size(), " groups)"));
  return absl::StrJoin(parts, " ");
}

RankGroups FirstOfEach(const RankGroups& groups) {
  RankGroups first{.group_size = 1};
  for (int g = 0; g < groups.size(); ++g)
    first.ranks.push_back(groups[g].front());
  return first;
}

RankGroups EndsOfEach(const RankGroups& groups) {
  if (groups.group_size == 1) return groups;
  RankGroups ends{.group_size = 2};
  for (int g = 0; g < groups.size(); ++g)
    ends.ranks.insert(ends.ranks.end(), {groups[g].front(), groups[g].back()});
  return ends;
}

absl::StatusOr<RankGrid> RankGrid::Create(std::vector<int> shape,
                                          std::vector<std::string> dim_names,
                                          int rank_offset, int world_size) {
  MIMO_RETURN_IF_ERROR(CheckDimensions("the grid", shape, dim_names));
  if (world_size < 1)
    return absl::InvalidArgumentError(
        absl::StrCat("Cannot determine world size: got ", world_size));
  if (rank_offset < 0)
    return absl::InvalidArgumentError(
        absl::StrCat("rank_offset must be non-negative, got ", rank_offset));
  const int64_t size = Product(shape);
  if (size > world_size - rank_offset)
    return absl::OutOfRangeError(
        absl::StrCat("the grid of shape ", Bracketed(shape),
                     " is over sized for world size ", world_size,
                     " and rank_offset ", rank_offset));
  RankGrid grid;
  grid.rank_offset_ = rank_offset;
  grid.size_ = static_cast<int>(size);
  grid.views_.push_back(MakeView(std::string(kBase), std::move(shape),
                                 std::move(dim_names), /*shared_dims=*/{}));
  return grid;
}

absl::Status RankGrid::RegisterView(const std::string& name,
                                    std::vector<int> shape,
                                    std::vector<std::string> dim_names,
                                    std::vector<std::string> shared_dims) {
  const std::string what = absl::StrCat("view '", name, "'");
  if (FindView(name).ok())
    return absl::AlreadyExistsError(
        absl::StrCat(what, " is already registered"));
  MIMO_RETURN_IF_ERROR(CheckDimensions(what, shape, dim_names));
  if (const int64_t size = Product(shape); size != size_)
    return absl::InvalidArgumentError(absl::StrCat(
        what, " has size ", size, ", but the grid size is ", size_));
  if (HasDuplicates(shared_dims))
    return absl::InvalidArgumentError(absl::StrCat(
        what, " has duplicate shared_dims ", Bracketed(shared_dims)));
  View view = MakeView(name, std::move(shape), std::move(dim_names),
                       std::move(shared_dims));
  const View& base = views_.front();
  for (const std::string& dim : view.shared_dims) {
    const std::string which = absl::StrCat(what, ": shared dim '", dim, "' ");
    const int in_base = Find(base.dim_names, dim);
    if (in_base < 0)
      return absl::InvalidArgumentError(
          absl::StrCat(which, "is not in the base view with dim_names ",
                       Bracketed(base.dim_names)));
    if (Find(view.dim_names, dim) < 0)
      return absl::InvalidArgumentError(absl::StrCat(
          which, "is not in the view's dim_names ", Bracketed(view.dim_names)));
  }
  // Equal groups of a dimension are an equal size and, past size 1, an equal
  // stride; so the groups of several such dimensions together are equal too.
  for (const std::string& dim : view.shared_dims) {
    const int b = Find(base.dim_names, dim), v = Find(view.dim_names, dim);
    if (base.shape[b] != view.shape[v] ||
        (base.shape[b] > 1 && base.stride[b] != view.stride[v]))
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": shared dim '", dim,
                       "' has different membership across views: base ",
                       Groups({dim})->ToString(), ", here ",
                       Enumerate({&view, {v}}).ToString()));
  }
  views_.push_back(std::move(view));
  return absl::OkStatus();
}

RankGrid::View RankGrid::MakeView(std::string name, std::vector<int> shape,
                                  std::vector<std::string> dim_names,
                                  std::vector<std::string> shared_dims) {
  View view{std::move(name), std::move(shape), std::move(dim_names),
            std::move(shared_dims)};
  int stride = 1;
  for (const int size : view.shape) {
    view.stride.push_back(stride);
    stride *= size;
  }
  return view;
}

absl::StatusOr<const RankGrid::View*> RankGrid::FindView(
    absl::string_view name) const {
  for (const View& view : views_)
    if (view.name == name) return &view;
  return absl::NotFoundError(absl::StrCat(
      "View '", name, "' is not registered; registered views: ",
      absl::StrJoin(views_, ", ", [](std::string* out, const View& view) {
        absl::StrAppend(out, "'", view.name, "'");
      })));
}

absl::StatusOr<RankGrid::Selection> RankGrid::Select(Dims dims,
                                                     absl::string_view view,
                                                     bool canonical) const {
  Selection selection;
  MIMO_ASSIGN_OR_RETURN(selection.view, FindView(view));
  if (dims.empty() || HasDuplicates(dims))
    return absl::InvalidArgumentError(absl::StrCat(
        "groups are asked for by dims, each once, got ", Bracketed(dims)));
  bool all_shared = true;
  for (const std::string& dim : dims) {
    if (Find(selection.view->dim_names, dim) < 0)
      return absl::InvalidArgumentError(absl::StrCat(
          "'", dim, "' is not in view '", view, "' with dim_names ",
          Bracketed(selection.view->dim_names)));
    all_shared &= Find(selection.view->shared_dims, dim) >= 0;
  }
  if (all_shared) selection.view = &views_.front();
  for (const std::string& dim : dims)
    selection.dims.push_back(Find(selection.view->dim_names, dim));
  if (canonical)
    std::sort(selection.dims.begin(), selection.dims.end(), std::greater<>());
  return selection;
}

RankGroups RankGrid::Enumerate(const Selection& selection) const {
  const View& view = *selection.view;
  std::vector<int> others;  // the last declared first: it is the slowest
  for (int dim = static_cast<int>(view.shape.size()) - 1; dim >= 0; --dim)
    if (std::find(selection.dims.begin(), selection.dims.end(), dim) ==
        selection.dims.end())
      others.push_back(dim);
  const std::vector<int> members =
      Combinations(0, selection.dims, view.shape, view.stride);
  RankGroups groups{.group_size = static_cast<int>(members.size())};
  groups.ranks.reserve(size_);
  for (const int first :
       Combinations(rank_offset_, others, view.shape, view.stride))
    for (const int member : members) groups.ranks.push_back(first + member);
  return groups;
}

absl::StatusOr<std::vector<int>> RankGrid::Coordinates(
    int rank, absl::string_view view) const {
  CHECK(Contains(rank)) << rank << " is not in [" << rank_offset_ << ", "
                        << rank_offset_ + size_ << ")";
  MIMO_ASSIGN_OR_RETURN(const View* found, FindView(view));
  std::vector<int> coordinates;
  for (size_t dim = 0; dim < found->shape.size(); ++dim)
    coordinates.push_back((rank - rank_offset_) / found->stride[dim] %
                          found->shape[dim]);
  return coordinates;
}

absl::StatusOr<std::string> RankGrid::Key(Dims dims,
                                          absl::string_view view) const {
  MIMO_ASSIGN_OR_RETURN(const Selection selection,
                        Select(dims, view, /*canonical=*/true));
  const std::string names =
      absl::StrJoin(selection.dims, "-", [&](std::string* out, int dim) {
        out->append(selection.view->dim_names[dim]);
      });
  return selection.view == &views_.front()
             ? names
             : absl::StrCat(selection.view->name, ".", names);
}

absl::StatusOr<int> RankGrid::GroupSize(Dims dims,
                                        absl::string_view view) const {
  MIMO_ASSIGN_OR_RETURN(const Selection selection,
                        Select(dims, view, /*canonical=*/false));
  int size = 1;
  for (const int dim : selection.dims) size *= selection.view->shape[dim];
  return size;
}

absl::StatusOr<RankGroups> RankGrid::Groups(Dims dims,
                                            absl::string_view view) const {
  MIMO_ASSIGN_OR_RETURN(const Selection selection,
                        Select(dims, view, /*canonical=*/true));
  return Enumerate(selection);
}

absl::StatusOr<RankGroups> RankGrid::RawGroups(Dims dims,
                                               absl::string_view view) const {
  MIMO_ASSIGN_OR_RETURN(const Selection selection,
                        Select(dims, view, /*canonical=*/false));
  return Enumerate(selection);
}

absl::StatusOr<std::vector<int>> RankGrid::GroupOf(
    int rank, Dims dims, absl::string_view view) const {
  MIMO_ASSIGN_OR_RETURN(const Selection selection,
                        Select(dims, view, /*canonical=*/true));
  MIMO_ASSIGN_OR_RETURN(const std::vector<int> coordinates,
                        Coordinates(rank, selection.view->name));
  int first = rank;
  for (const int dim : selection.dims)
    first -= coordinates[dim] * selection.view->stride[dim];
  return Combinations(first, selection.dims, selection.view->shape,
                      selection.view->stride);
}

}  // namespace mimo
