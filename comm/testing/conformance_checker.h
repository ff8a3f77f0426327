// Checker: one rank's part in each check of the conformance suite.
#ifndef MIMO_COMM_TESTING_CONFORMANCE_CHECKER_H_
#define MIMO_COMM_TESTING_CONFORMANCE_CHECKER_H_

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "comm/base/communicator.h"
#include "comm/testing/device_buffer.h"
#include "kernels/base/bfloat16.h"
#include "kernels/base/dtype.h"
#include "kernels/base/float16.h"

namespace mimo {

// SplitMix64's mixing (Steele, Lea and Flood 2014).
inline uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// A random element: floats in [-1, 1), integers so small that the sum over 8
// ranks does not overflow.
template <typename T>
T Random(uint64_t stream, int64_t i) {
  const uint64_t bits = Mix(stream + i);
  if constexpr (std::same_as<T, uint8_t>) {
    return bits >> 59;
  } else if constexpr (std::integral<T>) {
    return static_cast<T>(static_cast<int64_t>(bits) >> (68 - 8 * sizeof(T)));
  } else {
    const double value = static_cast<int64_t>(bits) * 0x1p-63;
    if constexpr (std::floating_point<T>)
      return static_cast<T>(value);
    else
      return T(static_cast<float>(value));
  }
}

template <typename T>
auto Widened(T x) {
  if constexpr (std::is_arithmetic_v<T>)
    return x;
  else
    return static_cast<float>(x);
}

// u: half the distance from 1 to the next number.
template <typename T>
double Roundoff() {
  if constexpr (std::same_as<T, BFloat16>)
    return 0x1p-8;
  else if constexpr (std::same_as<T, Float16>)
    return 0x1p-11;
  else if constexpr (std::floating_point<T>)
    return std::numeric_limits<T>::epsilon() / 2.0;
  else
    return 0;
}

// Each check is one call (or batch) in the group, of random data of its own.
class Checker {
 public:
  explicit Checker(Stream stream)
      : stream_(stream), send_(stream), recv_(stream) {}

  // The group and the number of its first case from now on.
  void Enter(Communicator* group, uint64_t first_case) {
    group_ = group;
    case_ = first_case;
  }
  const absl::Status& error() const { return error_; }
  void Expect(bool right, const std::string& message) {
    if (right || !error_.ok()) return;
    error_ = absl::DataLossError(absl::StrCat("group ", group_->name(), " of ",
                                              size(), ", rank ", rank(), ": ",
                                              Last(), ": ", message));
  }

  template <typename T>
  void AllReduce(int64_t count, ReduceOp op, bool in_place) {
    ++case_;
    const std::vector<T> input = Input<T>(rank(), count);
    T* send = send_.Set(input);
    T* recv = in_place ? send : recv_.Poison<T>(count);
    group_->AllReduce(send, recv, count, DTypeOf<T>::value, op, stream_);
    const std::vector<T> found = Get<T>(in_place ? send_ : recv_);
    ExpectReduced(found, 0, op);
    if (!in_place) ExpectUnchanged(input);
    if (op == ReduceOp::kSum) ExpectSameEverywhere(found);
  }

  template <typename T>
  void ReduceScatter(int64_t count, ReduceOp op, bool in_place) {
    ++case_;
    const std::vector<T> input = Input<T>(rank(), size() * count);
    T* send = send_.Set(input);
    T* recv = in_place ? send + rank() * count : recv_.Poison<T>(count);
    group_->ReduceScatter(send, recv, count, DTypeOf<T>::value, op, stream_);
    std::vector<T> found = Get<T>(in_place ? send_ : recv_);
    if (in_place) {
      found = {found.begin() + rank() * count,
               found.begin() + (rank() + 1) * count};
    }
    ExpectReduced(found, rank() * count, op);
    if (!in_place) ExpectUnchanged(input);
  }

  template <typename T>
  void AllGather(int64_t count, bool in_place) {
    ++case_;
    const std::vector<T> input = Input<T>(rank(), count);
    const T* send;
    T* recv;
    if (in_place) {
      std::vector<T> whole(size() * count);
      std::copy(input.begin(), input.end(), whole.begin() + rank() * count);
      recv = recv_.Set(whole);
      send = recv + rank() * count;
    } else {
      send = send_.Set(input);
      recv = recv_.Poison<T>(size() * count);
    }
    group_->AllGather(send, recv, count, DTypeOf<T>::value, stream_);
    std::vector<T> wanted;
    for (int p = 0; p < size(); ++p) Append(wanted, Input<T>(p, count));
    ExpectMoved(Get<T>(recv_), wanted);
    if (!in_place) ExpectUnchanged(input);
  }

  template <typename T>
  void Broadcast(int64_t count, int root) {
    ++case_;
    T* data = recv_.Set(Input<T>(rank(), count));
    group_->Broadcast(data, count, DTypeOf<T>::value, root, stream_);
    ExpectMoved(Get<T>(recv_), Input<T>(root, count));
  }

  template <typename T>
  void AllToAll(int64_t count, bool even) {
    ++case_;
    // Between two ranks: nothing, half or all of `count`.
    const auto Count = [&](int from, int to) {
      return even ? count : Mix(case_ + 64 * from + to) % 3 * count / 2;
    };
    std::vector<int64_t> send_counts, recv_counts;
    int64_t send_total = 0, recv_total = 0;
    std::vector<T> wanted;
    for (int p = 0; p < size(); ++p) {
      send_counts.push_back(Count(rank(), p));
      recv_counts.push_back(Count(p, rank()));
      send_total += send_counts[p];
      recv_total += recv_counts[p];
      int64_t begin = 0;
      for (int q = 0; q < rank(); ++q) begin += Count(p, q);
      Append(wanted, Input<T>(p, recv_counts[p], begin));
    }
    const std::vector<T> input = Input<T>(rank(), send_total);
    const T* send = send_.Set(input);
    T* recv = recv_.Poison<T>(recv_total);
    if (even) {
      group_->AllToAll(send, recv, count, DTypeOf<T>::value, stream_);
    } else {
      group_->AllToAll(send, send_counts, recv, recv_counts, DTypeOf<T>::value,
                       stream_);
    }
    ExpectMoved(Get<T>(recv_), wanted);
    ExpectUnchanged(input);
  }

  // Two transfers between each two ranks, both ways at once, and from each to
  // itself, in one batch.
  template <typename T>
  void Exchange(int64_t count) {
    ++case_;
    const int64_t half = count / 2, pair = count + half;
    const std::vector<T> input = Input<T>(rank(), size() * pair);
    T* send = send_.Set(input);
    T* recv = recv_.Poison<T>(size() * pair);
    std::vector<Transfer> transfers;
    std::vector<T> wanted;
    for (int i = 0; i < size(); ++i) {
      const int to = (rank() + i) % size();
      const int from = (rank() + size() - i) % size();
      T *out = send + to * pair, *in = recv + i * pair;
      constexpr DType kDType = DTypeOf<T>::value;
      transfers.push_back({Transfer::kSend, out, count, kDType, to});
      transfers.push_back({Transfer::kRecv, in, count, kDType, from});
      transfers.push_back({Transfer::kSend, out + count, half, kDType, to});
      transfers.push_back({Transfer::kRecv, in + count, half, kDType, from});
      Append(wanted, Input<T>(from, pair, rank() * pair));
    }
    group_->Exchange(transfers, stream_);
    ExpectMoved(Get<T>(recv_), wanted);
    ExpectUnchanged(input);
  }

  // Single sends along the row of ranks; even ones send first.
  template <typename T>
  void SendRecv(int64_t count) {
    ++case_;
    const T* send = send_.Set(Input<T>(rank(), count));
    T* recv = recv_.Poison<T>(rank() == 0 ? 0 : count);
    for (int turn = 0; turn < 2; ++turn) {
      if (turn == rank() % 2 && rank() + 1 < size())
        group_->Send(send, count, DTypeOf<T>::value, rank() + 1, stream_);
      if (turn != rank() % 2 && rank() > 0)
        group_->Recv(recv, count, DTypeOf<T>::value, rank() - 1, stream_);
    }
    ExpectMoved(Get<T>(recv_),
                rank() == 0 ? std::vector<T>() : Input<T>(rank() - 1, count));
  }

  void Barrier() { group_->Barrier(stream_); }

  int rank() const { return group_->rank(); }
  int size() const { return group_->size(); }

 private:
  // What `rank` brings to this case, from element `begin` on: random numbers
  // that repeat, so that large buffers are made and checked quickly; a prime
  // period, so that no part of a buffer looks like its neighbours.
  static constexpr int64_t kPeriod = 4099;
  template <typename T>
  std::vector<T> Input(int rank, int64_t count, int64_t begin = 0) const {
    std::vector<T> input(count);
    const uint64_t stream = Mix(Mix(case_) + rank);
    for (int64_t i = 0; i < std::min(count, kPeriod); ++i)
      input[i] = Random<T>(stream, (begin + i) % kPeriod);
    for (int64_t i = kPeriod; i < count; i += kPeriod)
      std::copy_n(input.begin(), std::min(kPeriod, count - i),
                  input.begin() + i);
    return input;
  }
  template <typename T>
  static void Append(std::vector<T>& to, const std::vector<T>& from) {
    to.insert(to.end(), from.begin(), from.end());
  }
  template <typename T>
  std::vector<T> Get(DeviceBuffer& buffer) {
    std::vector<T> found = buffer.Get<T>();
    Expect(buffer.guarded(), "bytes beside the result were written");
    return found;
  }
  std::string Last() const {
    const std::vector<Operation> last = group_->LastOperations();
    return last.empty() ? "no operation" : last.back().ToString();
  }

  template <typename T>
  static bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(&a[0], &b[0], a.size() * sizeof(T)) == 0);
  }
  template <typename T>
  void ExpectMoved(const std::vector<T>& found, const std::vector<T>& wanted) {
    if (!group_->Health().ok() || SameBits(found, wanted)) return;
    size_t i = 0;
    while (std::memcmp(&found[i], &wanted[i], sizeof(T)) == 0) ++i;
    Expect(false, absl::StrCat("element ", i, ": found ", Widened(found[i]),
                               ", wanted ", Widened(wanted[i])));
  }
  template <typename T>
  void ExpectUnchanged(const std::vector<T>& input) {
    Expect(SameBits(send_.Get<T>(), input) && send_.guarded(),
           "the input was written");
  }
  // found[i] = op over ranks of element begin + i.
  template <typename T>
  void ExpectReduced(const std::vector<T>& found, int64_t begin, ReduceOp op) {
    if (!group_->Health().ok()) return;
    using Exact = std::conditional_t<std::integral<T>, int64_t, double>;
    std::vector<Exact> wanted;
    std::vector<double> magnitude;
    for (int p = 0; p < size(); ++p) {
      const std::vector<T> input =
          Input<T>(p, std::min<int64_t>(found.size(), kPeriod), begin);
      wanted.resize(input.size());
      magnitude.resize(input.size());
      for (size_t i = 0; i < input.size(); ++i) {
        const auto x = static_cast<Exact>(Widened(input[i]));
        wanted[i] = p == 0 ? x : Combined(op, wanted[i], x);
        magnitude[i] += std::abs(static_cast<double>(x));
      }
    }
    // The oracle's own sum has roundings of float64. Float16 has roundings of
    // 2^-25 near 0. One rank's sum is a copy.
    const bool exact = std::integral<T> || op != ReduceOp::kSum || size() == 1;
    const double unit = exact ? 0 : size() * (Roundoff<T>() + 0x1p-53),
                 least = !exact && sizeof(T) == 2 ? size() * 0x1p-25 : 0;
    for (size_t i = 0; i < found.size(); ++i) {
      const size_t j = i % kPeriod;
      const double slack = unit * magnitude[j] + least;
      const auto x = static_cast<Exact>(Widened(found[i]));
      if (x == wanted[j] || std::abs(x - wanted[j]) <= slack) continue;
      return Expect(false,
                    absl::StrCat("element ", i, ": found ", x, ", wanted ",
                                 wanted[j], " within ", slack));
    }
  }
  template <typename A>
  static A Combined(ReduceOp op, A a, A b) {
    if (op == ReduceOp::kSum) return a + b;
    return op == ReduceOp::kMax ? std::max(a, b) : std::min(a, b);
  }
  template <typename T>
  void ExpectSameEverywhere(const std::vector<T>& found) {
    const auto hash = static_cast<int64_t>(std::hash<std::string_view>()(
        {reinterpret_cast<const char*>(found.data()),
         found.size() * sizeof(T)}));
    const std::string call = Last();
    const int64_t* send = send_.Set(std::vector<int64_t>{hash});
    int64_t* recv = recv_.Poison<int64_t>(size());
    group_->AllGather(send, recv, 1, DType::kInt64, stream_);
    for (const int64_t other : Get<int64_t>(recv_))
      Expect(other == hash || !group_->Health().ok(),
             call + ": ranks got different bits");
  }

  const Stream stream_;
  DeviceBuffer send_, recv_;
  Communicator* group_ = nullptr;
  uint64_t case_ = 0;
  absl::Status error_;
};

}  // namespace mimo

#endif  // MIMO_COMM_TESTING_CONFORMANCE_CHECKER_H_
