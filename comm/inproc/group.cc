#include "comm/inproc/group.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace mimo {

InprocGroup::InprocGroup(std::string name, std::vector<int> members)
    : name(std::move(name)),
      members(std::move(members)),
      gate(size()),
      slots(size()),
      channels(size() * size()),
      bells(size()),
      left(size()) {}

void InprocGroup::Fail(const absl::Status& why) {
  {
    absl::MutexLock lock(&mutex_);
    if (!why_.ok()) return;
    why_ = why;
  }
  failed.store(true, std::memory_order_release);
  gate.Close();
  for (Bell& bell : bells) bell.Ring();
}

void InprocGroup::Leave(int rank) {
  left[rank].store(true, std::memory_order_release);
  gate.Close();
  for (Bell& bell : bells) bell.Ring();
}

std::string InprocGroup::Title() const {
  return absl::StrCat("group ", name, " of ranks [",
                      absl::StrJoin(members, ", "), "]");
}

absl::Status InprocGroup::Why(const Operation& operation, int rank) {
  absl::MutexLock lock(&mutex_);
  if (!why_.ok()) return why_;
  int gone = 0;
  while (!left[gone].load(std::memory_order_acquire)) ++gone;
  return absl::UnavailableError(absl::StrCat(
      Title(), ": rank ", members[rank], " called ", operation.ToString(),
      " but rank ", members[gone], " has left"));
}

absl::Status InprocGroup::Difference() const {
  const Slot& first = slots[0];
  const Operation::Kind kind = first.operation.kind;
  for (int rank = 1; rank < size(); ++rank) {
    const Slot& slot = slots[rank];
    const auto Differ = [&](absl::string_view how) {
      return absl::FailedPreconditionError(
          absl::StrCat(Title(), ": rank ", members[0], " called ",
                       first.operation.ToString(), " but rank ", members[rank],
                       " called ", slot.operation.ToString(), how));
    };
    if (!slot.operation.Matches(first.operation)) return Differ("");
    if (kind != Operation::kSplit) continue;
    if (*slot.name != *first.name)
      return Differ(absl::StrCat(", into ", *first.name, " and ", *slot.name));
    if (slot.groups != first.groups) return Differ(", of other ranks");
  }
  if (kind != Operation::kAllToAll || first.operation.count >= 0)
    return absl::OkStatus();
  for (int from = 0; from < size(); ++from)
    for (int to = 0; to < size(); ++to)
      if (slots[from].send_counts[to] != slots[to].recv_counts[from])
        return absl::FailedPreconditionError(
            absl::StrCat(Title(), ": ", first.operation.ToString(), ": rank ",
                         members[from], " sends ", slots[from].send_counts[to],
                         " elements but rank ", members[to], " receives ",
                         slots[to].recv_counts[from], " from it"));
  return absl::OkStatus();
}

}  // namespace mimo
