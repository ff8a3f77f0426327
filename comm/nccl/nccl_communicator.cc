#include "comm/nccl/nccl_communicator.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <array>
#include <atomic>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "comm/base/watchdog.h"
#include "comm/nccl/nccl_control.h"
#include "comm/rendezvous/store_board.h"
#include "kernels/base/cuda_check.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// More than a stream holds before a launch waits (about a thousand), so an
// operation this far back is done.
constexpr int64_t kEvents = 1024;

ncclDataType_t ToNccl(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ncclFloat32;
    case DType::kFloat64:
      return ncclFloat64;
    case DType::kBFloat16:
      return ncclBfloat16;
    case DType::kFloat16:
      return ncclFloat16;
    case DType::kInt32:
      return ncclInt32;
    case DType::kInt64:
      return ncclInt64;
    case DType::kUInt8:
      return ncclUint8;
    case DType::kFloat8E4M3:
      return ncclFloat8e4m3;
    case DType::kFloat8E5M2:
      return ncclFloat8e5m2;
  }
  LOG(FATAL) << "no such dtype: " << static_cast<int>(dtype);
}

ncclRedOp_t ToNccl(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return ncclSum;
    case ReduceOp::kMax:
      return ncclMax;
    case ReduceOp::kMin:
      return ncclMin;
  }
  LOG(FATAL) << "no such reduction: " << static_cast<int>(op);
}

class NcclCommunicator : public Communicator {
 public:
  // `control` of the world, else null.
  NcclCommunicator(std::string name, std::vector<int> members, int rank,
                   ncclComm_t comm, int device,
                   std::unique_ptr<NcclControl> control)
      : Communicator(std::move(name), std::move(members), rank),
        device_(device),
        control_(std::move(control)),
        comm_(comm) {
    for (cudaEvent_t& event : events_)
      MIMO_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    MIMO_CUDA_CHECK(cudaMalloc(&scratch_, sizeof(int32_t)));
  }

  ~NcclCommunicator() override {
    Retire();
    if (abort_.joinable()) abort_.join();
    if (failed()) {
      Abandon();
    } else if (const ncclResult_t result = ncclCommDestroy(comm_);
               result != ncclSuccess) {
      LOG(ERROR) << ToStatus(result, absl::StrCat("group ", name())).message();
    }
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    cudaFree(scratch_);
  }

 protected:
  void DoAllReduce(const void* send, void* recv, int64_t count, DType dtype,
                   ReduceOp op, Stream stream) override {
    Enqueue(stream, [&] {
      return ncclAllReduce(send, recv, count, ToNccl(dtype), ToNccl(op), comm_,
                           RawStream(stream));
    });
  }

  void DoAllGather(const void* send, void* recv, int64_t count, DType dtype,
                   Stream stream) override {
    Enqueue(stream, [&] {
      return ncclAllGather(send, recv, count, ToNccl(dtype), comm_,
                           RawStream(stream));
    });
  }

  void DoReduceScatter(const void* send, void* recv, int64_t count, DType dtype,
                       ReduceOp op, Stream stream) override {
    Enqueue(stream, [&] {
      return ncclReduceScatter(send, recv, count, ToNccl(dtype), ToNccl(op),
                               comm_, RawStream(stream));
    });
  }

  void DoBroadcast(void* data, int64_t count, DType dtype, int root,
                   Stream stream) override {
    Enqueue(stream, [&] {
      return ncclBroadcast(data, data, count, ToNccl(dtype), root, comm_,
                           RawStream(stream));
    });
  }

  void DoAllToAll(const void* send, absl::Span<const int64_t> send_counts,
                  void* recv, absl::Span<const int64_t> recv_counts,
                  DType dtype, Stream stream) override {
    Enqueue(stream, [&] {
      return Group([&](ncclResult_t& result) {
        auto from = static_cast<const char*>(send);
        auto to = static_cast<char*>(recv);
        for (int p = 0; p < size() && result == ncclSuccess; ++p) {
          if (send_counts[p] > 0)
            result = ncclSend(from, send_counts[p], ToNccl(dtype), p, comm_,
                              RawStream(stream));
          if (recv_counts[p] > 0 && result == ncclSuccess)
            result = ncclRecv(to, recv_counts[p], ToNccl(dtype), p, comm_,
                              RawStream(stream));
          from += send_counts[p] * SizeOf(dtype);
          to += recv_counts[p] * SizeOf(dtype);
        }
      });
    });
  }

  void DoExchange(absl::Span<const Transfer> transfers,
                  Stream stream) override {
    Enqueue(stream, [&] {
      if (transfers.size() == 1) return Move(transfers[0], stream);
      return Group([&](ncclResult_t& result) {
        for (const Transfer& transfer : transfers)
          if (result == ncclSuccess) result = Move(transfer, stream);
      });
    });
  }

  void DoBarrier(Stream stream) override {
    Enqueue(stream, [&] {
      return ncclAllReduce(scratch_, scratch_, 1, ncclInt32, ncclSum, comm_,
                           RawStream(stream));
    });
    MIMO_CUDA_CHECK(cudaStreamSynchronize(RawStream(stream)));
  }

  absl::StatusOr<std::unique_ptr<Communicator>> DoSplit(
      const std::string& name,
      absl::Span<const std::vector<int>> groups) override {
    int color = NCCL_SPLIT_NOCOLOR, key = 0;
    std::vector<int> ranks_of_world;
    for (size_t g = 0; g < groups.size(); ++g) {
      for (size_t i = 0; i < groups[g].size(); ++i) {
        if (groups[g][i] != rank()) continue;
        color = g;
        key = i;
        for (int r : groups[g]) ranks_of_world.push_back(members()[r]);
      }
    }
    const std::string what =
        absl::StrCat("split of group ", this->name(), " into ", name);
    ncclComm_t part = nullptr;
    if (control_ != nullptr) {
      MIMO_ASSIGN_OR_RETURN(
          part, control_->Split(color, key, what, [this] { return failed(); }));
    } else {
      ncclResult_t result = ncclSuccess;
      Call([&] {
        ncclConfig_t config = NcclConfig(/*blocking=*/true);
        result = ncclCommSplit(comm_, color, key, &part, &config);
      });
      MIMO_RETURN_IF_ERROR(ToStatus(result, what));
    }
    enqueued_.store(begun(), std::memory_order_release);
    if (part == nullptr) return nullptr;
    return std::make_unique<NcclCommunicator>(name, std::move(ranks_of_world),
                                              key, part, device_, nullptr);
  }

  // An abort waits for what its group has on the GPU, which may be behind
  // another group's: all are aborted at once, each on a thread.
  void DoAbort(const absl::Status&) override {
    abort_ = std::thread([this] {
      absl::MutexLock lock(&mutex_);
      Abandon();
    });
  }

  int64_t Completed() const override {
    cudaSetDevice(device_);  // else a new thread makes a context on GPU 0
    const int64_t enqueued = enqueued_.load(std::memory_order_acquire);
    int64_t done = std::max(completed_.load(std::memory_order_relaxed),
                            enqueued - kEvents);
    while (done < enqueued &&
           cudaEventQuery(events_[done % kEvents]) == cudaSuccess)
      ++done;
    completed_.store(done, std::memory_order_relaxed);
    return done;
  }

  absl::Status Poll() override {
    absl::MutexLock lock(&mutex_);
    if (state_ == State::kAbandoned) return absl::OkStatus();
    ncclResult_t state;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    return ToStatus(asked != ncclSuccess ? asked : state,
                    absl::StrCat("group ", name()));
  }

 private:
  enum class State { kIdle, kCalling, kAbandoned };

  // Makes a call of NCCL's, during which comm_ is not freed.
  template <typename F>
  void Call(F&& f) {
    State state = State::kIdle;
    if (!state_.compare_exchange_strong(state, State::kCalling)) return;
    f();
    state = State::kCalling;
    if (!state_.compare_exchange_strong(state, State::kIdle)) left_ = true;
  }

  // An operation of NCCL's, and its event.
  template <typename F>
  void Enqueue(Stream stream, F&& operation) {
    Call([&] {
      const ncclResult_t result = operation();
      if (result != ncclSuccess)
        return Fail(ToStatus(result, absl::StrCat("group ", name(), ": ",
                                                  current().ToString())));
      // An event in a capture would mark the graph's work, not this call. The
      // slot keeps an old one, which is done.
      cudaStreamCaptureStatus capture;
      MIMO_CUDA_CHECK(cudaStreamIsCapturing(RawStream(stream), &capture));
      if (capture == cudaStreamCaptureStatusNone)
        MIMO_CUDA_CHECK(cudaEventRecord(events_[(begun() - 1) % kEvents],
                                        RawStream(stream)));
      enqueued_.store(begun(), std::memory_order_release);
    });
  }

  ncclResult_t Move(const Transfer& t, Stream stream) const {
    if (t.count == 0) return ncclSuccess;
    return t.kind == Transfer::kSend
               ? ncclSend(t.data, t.count, ToNccl(t.dtype), t.peer, comm_,
                          RawStream(stream))
               : ncclRecv(t.data, t.count, ToNccl(t.dtype), t.peer, comm_,
                          RawStream(stream));
  }

  // f(result) makes calls that NCCL launches as one.
  template <typename F>
  static ncclResult_t Group(F&& f) {
    ncclResult_t result = ncclGroupStart();
    if (result != ncclSuccess) return result;
    f(result);
    const ncclResult_t end = ncclGroupEnd();
    return result != ncclSuccess ? result : end;
  }

  // Ends what is under way and frees comm_. A caller inside NCCL waits for the
  // GPU, whose kernels a revoke ends, or for a connection to its peers, which
  // only the abort ends, though it frees what the caller may still read.
  void Abandon() {
    cudaSetDevice(device_);
    const State state = state_.exchange(State::kAbandoned);
    if (state == State::kAbandoned) return;
    if (state == State::kCalling) {
      ncclCommRevoke(comm_, NCCL_REVOKE_DEFAULT);
      const absl::Time deadline = absl::Now() + absl::Milliseconds(100);
      while (!left_ && absl::Now() < deadline)
        absl::SleepFor(absl::Milliseconds(1));
    }
    ncclCommAbort(comm_);
  }

  const int device_;
  const std::unique_ptr<NcclControl> control_;
  const ncclComm_t comm_;
  std::atomic<State> state_{State::kIdle};
  std::atomic<bool> left_{false};  // the call that saw itself abandoned
  std::thread abort_;
  absl::Mutex mutex_;                        // Poll and abort_
  std::array<cudaEvent_t, kEvents> events_;  // operation i's is i % kEvents
  std::atomic<int64_t> enqueued_{0};         // operations with an event
  mutable std::atomic<int64_t> completed_{0};
  void* scratch_ = nullptr;  // of Barrier
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> ConnectNccl(
    const Job& job, Store& store, const NcclOptions& options) {
  int gpus = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&gpus);
      error != cudaSuccess || job.local_rank >= gpus) {
    return absl::FailedPreconditionError(absl::StrCat(
        "rank ", job.rank, ": found ", gpus, " GPUs (",
        cudaGetErrorString(error), "), wanted number ", job.local_rank));
  }
  MIMO_CUDA_CHECK(cudaSetDevice(job.local_rank));

  std::shared_ptr<FailureBoard> board = NewStoreBoard(store, job.rank);
  ncclUniqueId id;
  if (job.rank == 0) {
    MIMO_RETURN_IF_ERROR(ToStatus(ncclGetUniqueId(&id), "ncclGetUniqueId"));
    MIMO_RETURN_IF_ERROR(
        store.Set("nccl/id", std::string(id.internal, sizeof id.internal)));
  } else {
    MIMO_ASSIGN_OR_RETURN(
        const std::string bytes,
        GetUnlessFailed(store, *board, "nccl/id", options.timeout));
    if (bytes.size() != sizeof id.internal) {
      return absl::InternalError(absl::StrCat("the store's nccl/id: found ",
                                              bytes.size(), " bytes, wanted ",
                                              sizeof id.internal));
    }
    bytes.copy(id.internal, bytes.size());
  }

  const auto failed = [&] { return !board->Raised().empty(); };
  ncclConfig_t config = NcclConfig(/*blocking=*/false);
  ncclComm_t comm = nullptr;
  const ncclResult_t begun =
      ncclCommInitRankConfig(&comm, job.world_size, id, job.rank, &config);
  if (comm == nullptr) return ToStatus(begun, "the world's setting up");
  auto control = std::make_unique<NcclControl>(comm, options.timeout);
  MIMO_RETURN_IF_ERROR(OrFailure(
      *board, control->Await(begun, "the world's setting up", failed)));
  const absl::StatusOr<ncclComm_t> data =
      control->Split(0, job.rank, "the world's communicator", failed);
  MIMO_RETURN_IF_ERROR(OrFailure(*board, data.status()));

  std::vector<int> members(job.world_size);
  std::iota(members.begin(), members.end(), 0);
  auto world = std::make_unique<NcclCommunicator>(
      "world", std::move(members), job.rank, *data, job.local_rank,
      std::move(control));
  world->WatchWith(
      std::make_shared<Watchdog>(job.rank, std::move(board), options.timeout));
  return world;
}

}  // namespace mimo
