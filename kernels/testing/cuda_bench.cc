#include "kernels/testing/cuda_bench.h"

#include <algorithm>
#include <random>
#include <string>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "kernels/base/bfloat16.h"
#include "kernels/base/device.h"
#include "kernels/base/on_cuda.h"
#include "kernels/testing/cuda_bench_events.h"

namespace mimo {
namespace {

double Median(std::vector<double> values) {
  const auto middle = values.begin() + values.size() / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// One for all cases, once a GPU was found.
Stream BenchStream() {
  static const Stream stream = NewStream(Device::kCuda);
  return stream;
}

// 256 MiB, five times Hopper's cache.
constexpr int64_t kFlushBytes = int64_t{256} << 20;
void FlushCache(Stream stream) {
  static void* const memory = AllocateMemory(Device::kCuda, kFlushBytes);
  FillBytes(memory, 1, kFlushBytes, stream);
}

// The values repeat after a tile of a prime length.
template <typename T>
void FillRandom(void* memory, int64_t n, float scale, Stream stream) {
  std::mt19937 bits(1);
  std::vector<T> tile(std::min<int64_t>(n, 1000003));
  for (T& v : tile)
    v = T(scale * (static_cast<float>(bits() >> 8) * 0x1p-23f - 1));
  const int64_t bytes = n * sizeof(T);
  char* to = static_cast<char*>(memory);
  int64_t done = tile.size() * sizeof(T);
  CopyBytes(to, tile.data(), done, stream);
  Synchronize(stream);
  for (; done < bytes; done *= 2)
    CopyBytes(to + done, to, std::min(done, bytes - done), stream);
}

}  // namespace

CudaBench::CudaBench(benchmark::State& state) : state_(state) {
  const absl::Status status = CheckDevice(Device::kCuda);
  if (status.ok()) {
    stream_ = BenchStream();
  } else {
    state.SkipWithMessage(std::string(status.message()));
  }
}

CudaBench::~CudaBench() {
  for (void* memory : memory_) FreeMemory(Device::kCuda, memory);
}

void* CudaBench::Allocate(int64_t bytes) {
  memory_.push_back(AllocateMemory(Device::kCuda, std::max<int64_t>(bytes, 1)));
  CHECK(memory_.back() != nullptr) << "no " << bytes << " bytes on the GPU";
  return memory_.back();
}

void* CudaBench::CopyOf(const void* values, int64_t bytes) {
  void* memory = Allocate(bytes);
  CopyBytes(memory, values, bytes, stream_);
  Synchronize(stream_);
  return memory;
}

void* CudaBench::Random(DType dtype, int64_t n, float scale) {
  void* memory = Allocate(n * SizeOf(dtype));
  switch (dtype) {
    case DType::kFloat32:
      FillRandom<float>(memory, n, scale, stream_);
      break;
    case DType::kBFloat16:
      FillRandom<BFloat16>(memory, n, scale, stream_);
      break;
    default:
      LOG(FATAL) << "no random " << Name(dtype);
  }
  return memory;
}

void CudaBench::Run(Op op, std::optional<Op> beside) {
  constexpr double kWarmUp = 0.2;
  for (double run = 0; run < kWarmUp;) run += CudaSeconds(stream_, op);
  std::vector<double> seconds, others;
  for (auto _ : state_) {
    seconds.push_back(CudaSeconds(stream_, op));
    state_.SetIterationTime(seconds.back());
    if (beside) others.push_back(CudaSeconds(stream_, *beside));
  }
  median_ = Median(std::move(seconds));
  state_.counters["median"] = median_;
  if (beside) state_.counters["beside"] = Median(std::move(others));
}

void CudaBench::ReportBytes(double bytes) {
  state_.counters["TB/s"] = bytes / median_ * 1e-12;
  state_.counters["copy%"] = 100 * bytes / median_ / CudaCopyBytesPerSecond();
}

void CudaBench::ReportFlops(double flops, double floor) {
  state_.counters["TFLOP/s"] = flops / median_ * 1e-12;
  if (floor > 0) state_.counters["floor%"] = 100 * flops / median_ / floor;
}

double CudaSeconds(Stream stream, absl::FunctionRef<void(Stream)> op) {
  FlushCache(stream);
  MIMO_ON_CUDA(SecondsByEvents(stream, op));
}

double MedianCudaSeconds(Stream stream, int times,
                         absl::FunctionRef<void(Stream)> op) {
  std::vector<double> seconds;
  for (int i = 0; i < times; ++i) seconds.push_back(CudaSeconds(stream, op));
  return Median(std::move(seconds));
}

double CudaCopyBytesPerSecond() {
  static const double rate = [] {
    constexpr int64_t kBytes = int64_t{1} << 30;
    const Stream stream = BenchStream();
    void* from = AllocateMemory(Device::kCuda, kBytes);
    void* to = AllocateMemory(Device::kCuda, kBytes);
    CHECK(from != nullptr && to != nullptr) << "no 2 GiB on the GPU";
    FillRandom<float>(from, kBytes / sizeof(float), 1, stream);
    const double seconds = MedianCudaSeconds(
        stream, 20, [&](Stream s) { CopyBytes(to, from, kBytes, s); });
    FreeMemory(Device::kCuda, from);
    FreeMemory(Device::kCuda, to);
    return 2 * kBytes / seconds;
  }();
  return rate;
}

}  // namespace mimo
