#include "bench/collectives/measure.h"

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <utility>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "absl/strings/str_format.h"
#include "kernels/base/device.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr int kFewestRounds = 5;
constexpr int kMostRounds = 50;
// Fewer than a GPU's queue of launches holds, so that none waits for room.
constexpr int kMostCalls = 200;

using Clock = std::chrono::steady_clock;

double Microseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::micro>(to - from).count();
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + values.size() / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Memory of a device; every byte is 0x3c, a small number in every float dtype.
class Buffer {
 public:
  Buffer(int64_t bytes, Stream stream)
      : device_(stream.device), data_(AllocateMemory(device_, bytes)) {
    CHECK(data_ != nullptr) << "no room for " << bytes << " bytes";
    FillBytes(data_, 0x3c, bytes, stream);
  }
  ~Buffer() { FreeMemory(device_, data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* data() const { return data_; }

 private:
  const Device device_;
  void* const data_;
};

// values[i] = the largest of any rank's.
void MaxOverRanks(Communicator& group, Stream stream,
                  std::vector<double>& values) {
  const int64_t bytes = values.size() * sizeof(double);
  const Buffer buffer(bytes, stream);
  CopyBytes(buffer.data(), values.data(), bytes, stream);
  group.AllReduce(buffer.data(), buffer.data(), values.size(), DType::kFloat64,
                  ReduceOp::kMax, stream);
  CopyBytes(values.data(), buffer.data(), bytes, stream);
  Synchronize(stream);
}

}  // namespace

absl::string_view Name(Collective what) {
  switch (what) {
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kAllGather:
      return "all_gather";
    case Collective::kReduceScatter:
      return "reduce_scatter";
    case Collective::kBroadcast:
      return "broadcast";
    case Collective::kAllToAll:
      return "all_to_all";
    case Collective::kSendRecv:
      return "send_recv";
    case Collective::kExchange:
      return "exchange";
    case Collective::kBarrier:
      return "barrier";
  }
  LOG(FATAL) << "no such collective: " << static_cast<int>(what);
}

double BusFactor(Collective what, int ranks) {
  switch (what) {
    case Collective::kAllReduce:
      return 2.0 * (ranks - 1) / ranks;
    case Collective::kAllGather:
    case Collective::kReduceScatter:
    case Collective::kAllToAll:
      return 1.0 * (ranks - 1) / ranks;
    case Collective::kBroadcast:
    case Collective::kSendRecv:
    case Collective::kExchange:
      return 1;
    case Collective::kBarrier:
      return 0;
  }
  LOG(FATAL) << "no such collective: " << static_cast<int>(what);
}

int64_t CountOf(Collective what, int64_t bytes, DType dtype, int ranks) {
  const int64_t elements = bytes / SizeOf(dtype);
  switch (what) {
    case Collective::kAllGather:
    case Collective::kReduceScatter:
    case Collective::kAllToAll:
      return elements / ranks;
    default:
      return elements;
  }
}

RunCollective OperationsOf(Communicator& group) {
  return [&group](Collective what, const void* send, void* recv, int64_t count,
                  DType dtype, Stream stream) {
    const int rank = group.rank(), ranks = group.size();
    switch (what) {
      case Collective::kAllReduce:
        return group.AllReduce(send, recv, count, dtype, ReduceOp::kSum,
                               stream);
      case Collective::kAllGather:
        return group.AllGather(send, recv, count, dtype, stream);
      case Collective::kReduceScatter:
        return group.ReduceScatter(send, recv, count, dtype, ReduceOp::kSum,
                                   stream);
      case Collective::kBroadcast:
        return group.Broadcast(recv, count, dtype, /*root=*/0, stream);
      case Collective::kAllToAll:
        return group.AllToAll(send, recv, count, dtype, stream);
      case Collective::kSendRecv:
        if (rank % 2 == 1)
          group.Recv(recv, count, dtype, rank - 1, stream);
        else if (rank + 1 < ranks)
          group.Send(send, count, dtype, rank + 1, stream);
        return;
      case Collective::kExchange:
        if (ranks > 1)
          group.Exchange({{Transfer::kSend, const_cast<void*>(send), count,
                           dtype, (rank + 1) % ranks},
                          {Transfer::kRecv, recv, count, dtype,
                           (rank + ranks - 1) % ranks}},
                         stream);
        return;
      case Collective::kBarrier:
        return group.Barrier(stream);
    }
  };
}

absl::StatusOr<std::vector<Timing>> Measure(
    Communicator& group, Stream stream, Collective what, int64_t bytes,
    DType dtype, double seconds, absl::Span<const Contender> contenders) {
  const Buffer send(bytes, stream), recv(bytes, stream);
  const int64_t count = CountOf(what, bytes, dtype, group.size());
  std::vector<std::vector<double>> us(contenders.size()), enqueue_us = us;
  const auto run = [&](size_t c, int calls) {
    group.Barrier(stream);
    Synchronize(stream);
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < calls; ++i)
      contenders[c].run(what, send.data(), recv.data(), count, dtype, stream);
    const Clock::time_point enqueued = Clock::now();
    Synchronize(stream);
    us[c].push_back(Microseconds(start, Clock::now()) / calls);
    enqueue_us[c].push_back(Microseconds(start, enqueued) / calls);
  };
  // All ranks must make as many calls, so the slowest's pilot says how many.
  std::vector<double> pilot_us = {1e-3};
  for (size_t c = 0; c < contenders.size(); ++c) {
    run(c, 2);
    run(c, 2);
    pilot_us[0] += us[c].back();
    us[c].clear();
    enqueue_us[c].clear();
  }
  MaxOverRanks(group, stream, pilot_us);
  MIMO_RETURN_IF_ERROR(group.Health());
  const double all_calls = seconds * 1e6 / pilot_us[0];
  const int calls =
      std::clamp(static_cast<int>(all_calls / kFewestRounds), 1, kMostCalls);
  const int rounds = std::clamp(static_cast<int>(all_calls / calls),
                                kFewestRounds, kMostRounds);
  for (int round = 0; round < rounds; ++round)
    for (size_t c = 0; c < contenders.size(); ++c) run(c, calls);
  for (std::vector<double>& of : us) MaxOverRanks(group, stream, of);
  MIMO_RETURN_IF_ERROR(group.Health());
  std::vector<Timing> medians;
  for (size_t c = 0; c < contenders.size(); ++c)
    medians.push_back({Median(us[c]), Median(enqueue_us[c])});
  return medians;
}

absl::Status PrintTable(Communicator& group, Stream stream,
                        const TableOptions& options,
                        absl::Span<const Contender> contenders) {
  const bool prints = group.rank() == 0, compares = contenders.size() == 2;
  if (prints) {
    std::cout << "| operation | bytes |";
    for (const Contender& c : contenders)
      std::cout << absl::StreamFormat(
          " %s: us | enqueue us | algorithm GB/s | bus GB/s |", c.name);
    if (compares)
      std::cout << absl::StreamFormat(
          " %1$s us / %2$s us | %2$s - %1$s: enqueue us |", contenders[1].name,
          contenders[0].name);
    std::cout << "\n|---|---|";
    for (size_t c = 0; c < contenders.size(); ++c)
      std::cout << "---|---|---|---|";
    if (compares) std::cout << "---|---|";
    std::cout << "\n";
  }
  for (const Collective what : kCollectives)
    for (const int64_t bytes : options.bytes) {
      if (what == Collective::kBarrier && bytes != options.bytes.front())
        continue;
      MIMO_ASSIGN_OR_RETURN(const std::vector<Timing> timings,
                            Measure(group, stream, what, bytes, options.dtype,
                                    options.seconds, contenders));
      if (!prints) continue;
      const bool moves = what != Collective::kBarrier;
      std::cout << absl::StreamFormat("| %s | %d |", Name(what),
                                      moves ? bytes : 0);
      for (const Timing& t : timings) {
        const double rate = moves ? bytes / t.us / 1e3 : 0;
        std::cout << absl::StreamFormat(" %.2f | %.2f | %.2f | %.2f |", t.us,
                                        t.enqueue_us, rate,
                                        rate * BusFactor(what, group.size()));
      }
      if (compares)
        std::cout << absl::StreamFormat(
            " %.3f | %.2f |", timings[1].us / timings[0].us,
            timings[0].enqueue_us - timings[1].enqueue_us);
      std::cout << std::endl;
    }
  return absl::OkStatus();
}

}  // namespace mimo
