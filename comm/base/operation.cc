#include "comm/base/operation.h"

#include "absl/strings/str_cat.h"

namespace mimo {
namespace {

const char* Name(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return "sum";
    case ReduceOp::kMax:
      return "max";
    case ReduceOp::kMin:
      return "min";
  }
  return "?";
}

}  // namespace

bool Operation::Matches(const Operation& other) const {
  return kind == other.kind && dtype == other.dtype && op == other.op &&
         count == other.count && root == other.root;
}

std::string Operation::ToString() const {
  const std::string elements = absl::StrCat(count, " ", mimo::Name(dtype));
  std::string call;
  switch (kind) {
    case kAllReduce:
      call = absl::StrCat("all_reduce(", Name(op), ", ", elements, ")");
      break;
    case kAllGather:
      call = absl::StrCat("all_gather(", elements, ")");
      break;
    case kReduceScatter:
      call = absl::StrCat("reduce_scatter(", Name(op), ", ", elements, ")");
      break;
    case kBroadcast:
      call = absl::StrCat("broadcast(", elements, ", root ", root, ")");
      break;
    case kAllToAll:
      call = count == kUneven
                 ? absl::StrCat("all_to_all(uneven ", mimo::Name(dtype), ")")
                 : absl::StrCat("all_to_all(", elements, ")");
      break;
    case kExchange:
      call = absl::StrCat("exchange(", count, " transfers, first peer ", root,
                          ")");
      break;
    case kBarrier:
      call = "barrier()";
      break;
    case kSplit:
      call = absl::StrCat("split(", count, " groups)");
      break;
  }
  return absl::StrCat(call, ", sequence ", sequence);
}

}  // namespace mimo
