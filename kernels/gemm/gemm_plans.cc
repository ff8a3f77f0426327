#include "kernels/gemm/gemm_plans.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/base/cuda_check.h"

namespace mimo::kernels {
namespace {

constexpr int64_t kWorkspaceBytes = 32 << 20;  // what Hopper's kernels ask for
constexpr int kCandidates = 16;

cudaDataType_t TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return CUDA_R_32F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    case DType::kFloat8E4M3:
      return CUDA_R_8F_E4M3;
    case DType::kFloat8E5M2:
      return CUDA_R_8F_E5M2;
    default:
      LOG(FATAL) << "Gemm of " << Name(dtype);
  }
}

// The largest power of two up to 16 that divides the address; 16 for null.
int AlignmentOf(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return address == 0 ? 16 : std::min<uintptr_t>(16, address & -address);
}

template <typename T>
void Set(cublasLtMatmulDescOpaque_t& product,
         cublasLtMatmulDescAttributes_t attribute, const T& value) {
  MIMO_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&product, attribute, &value,
                                                   sizeof(value)));
}

template <typename T>
void Set(cublasLtMatmulPreferenceOpaque_t& preference,
         cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  MIMO_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
      &preference, attribute, &value, sizeof(value)));
}

cublasLtEpilogue_t EpilogueOf(const GemmArgs& args) {
  const bool bias = args.bias != nullptr;
  if (args.activation == Activation::kIdentity)
    return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  CHECK(args.activation == Activation::kGeluTanh);
  if (args.z != nullptr) {
    return bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
  }
  return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
}

// The best first; empty if there is none.
std::vector<cublasLtMatmulAlgo_t> Candidates(cublasLtHandle_t handle,
                                             GemmProblem& problem, int most) {
  cublasLtMatmulPreferenceOpaque_t preference;
  MIMO_CUBLAS_CHECK(cublasLtMatmulPreferenceInit(&preference));
  Set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
      uint64_t{kWorkspaceBytes});
  // A K that is split is summed in a fixed order, in float32.
  Set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  const auto align = [&](cublasLtMatmulPreferenceAttributes_t attribute,
                         int bytes) {
    Set(preference, attribute, static_cast<uint32_t>(bytes));
  };
  align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, problem.alignments[0]);
  align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, problem.alignments[1]);
  align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, problem.alignments[2]);
  align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, problem.alignments[2]);
  std::vector<cublasLtMatmulHeuristicResult_t> results(most);
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, &problem.product, &problem.a, &problem.b, &problem.c, &problem.c,
      &preference, most, results.data(), &found);
  // What an epilogue does not take (a leading dimension, an alignment) is
  // either of these.
  if (status != CUBLAS_STATUS_NOT_SUPPORTED &&
      status != CUBLAS_STATUS_INVALID_VALUE) {
    MIMO_CUBLAS_CHECK(status);
  }
  std::vector<cublasLtMatmulAlgo_t> candidates;
  for (int i = 0; i < found; ++i) {
    if (results[i].state == CUBLAS_STATUS_SUCCESS)
      candidates.push_back(results[i].algo);
  }
  return candidates;
}

bool IsCapturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  MIMO_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

// Null when there is no memory left. Allowed while a stream is captured.
void* Allocate(int64_t bytes) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  MIMO_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: cleared
  } else {
    MIMO_CUDA_CHECK(error);
  }
  MIMO_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
  return memory;
}

}  // namespace

GemmProblem::GemmProblem(const GemmArgs& args) {
  const cudaDataType_t a_type = TypeOf(args.dtype),
                       b_type = TypeOf(*args.b_dtype),
                       c_type = TypeOf(*args.c_dtype);
  const cublasLtEpilogue_t epilogue = EpilogueOf(args);
  // True float32: CUBLAS_COMPUTE_32F does not round inputs to TF32.
  MIMO_CUBLAS_CHECK(
      cublasLtMatmulDescInit(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const auto operation = [](bool transpose) {
    return transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
  };
  Set(product, CUBLASLT_MATMUL_DESC_TRANSA, operation(args.transpose_b));
  Set(product, CUBLASLT_MATMUL_DESC_TRANSB, operation(args.transpose_a));
  Set(product, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (args.bias != nullptr)
    Set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias);
  if (args.z != nullptr) {
    Set(product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, args.z);
    Set(product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, args.n);
  }
  if (args.a_scale != nullptr) {
    Set(product, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, args.b_scale);
    Set(product, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, args.a_scale);
  }
  const auto layout = [](cublasLtMatrixLayoutOpaque_t& matrix,
                         cudaDataType_t of, int64_t rows, int64_t columns,
                         int64_t ld, bool transpose) {
    if (transpose) std::swap(rows, columns);
    MIMO_CUBLAS_CHECK(cublasLtMatrixLayoutInit(&matrix, of, rows, columns, ld));
  };
  layout(a, b_type, args.n, args.k, args.ldb, args.transpose_b);
  layout(b, a_type, args.k, args.m, args.lda, args.transpose_a);
  layout(c, c_type, args.n, args.m, args.ldc, false);
  alignments[0] = AlignmentOf(args.b);
  alignments[1] = AlignmentOf(args.a);
  alignments[2] = AlignmentOf(args.c);
  key = {args.m,
         args.n,
         args.k,
         args.transpose_a,
         args.transpose_b,
         args.lda,
         args.ldb,
         args.ldc,
         a_type,
         b_type,
         c_type,
         args.beta != 0,
         epilogue,
         alignments[0],
         alignments[1],
         alignments[2],
         AlignmentOf(args.bias) * 32 + AlignmentOf(args.z)};
}

GemmPlans& GemmPlans::Get() {
  static GemmPlans& plans = *new GemmPlans;
  return plans;
}

GemmPlans::GemmPlans() { MIMO_CUBLAS_CHECK(cublasLtCreate(&handle_)); }

// One a stream: products of two streams may run at the same time.
void* GemmPlans::Workspace(cudaStream_t stream) {
  void*& workspace = workspaces_[stream];
  if (workspace == nullptr) {
    workspace = Allocate(kWorkspaceBytes);
    if (workspace == nullptr)
      OutOfMemory(Device::kCuda, "32 MiB of workspace for products wanted");
  }
  return workspace;
}

cublasStatus_t GemmPlans::Launch(GemmProblem& problem,
                                 const cublasLtMatmulAlgo_t& algo,
                                 const GemmArgs& args, cudaStream_t stream) {
  const float alpha = 1;
  return cublasLtMatmul(handle_, &problem.product, &alpha, args.b, &problem.a,
                        args.a, &problem.b, &args.beta, args.c, &problem.c,
                        args.c, &problem.c, &algo, Workspace(stream),
                        kWorkspaceBytes, stream);
}

bool GemmPlans::Run(const GemmArgs& args, cudaStream_t stream) {
  GemmProblem problem(args);
  absl::MutexLock lock(&mutex_);
  const Plan& plan = Find(problem, args, stream);
  if (!plan.exists) return false;
  MIMO_CUBLAS_CHECK(Launch(problem, plan.algo, args, stream));
  return true;
}

// Every time is taken after the cache was filled with other data, as in a step.
// A GPU's clocks move by more than candidates differ: it is first brought to
// the clock that the power limit leaves, where another one may be the fastest;
// all run in turn, and the fastest then runs in turn with cuBLASLt's own
// choice, which stays unless the other is 1 % faster in the median pair.
int GemmPlans::Fastest(GemmProblem& problem,
                       const std::vector<cublasLtMatmulAlgo_t>& candidates,
                       const GemmArgs& args, cudaStream_t stream) {
  constexpr int kRounds = 5, kPairs = 11;
  constexpr float kGain = 0.99, kWarmUpMs = 300;
  constexpr absl::Duration kCool = absl::Milliseconds(50);
  constexpr int64_t kCacheBytes = 64 << 20;  // more than Hopper's 50 MB
  GemmArgs trial = args;
  // c is added to by the caller's product alone.
  const int64_t c_bytes =
      args.beta == 0 ? 0 : args.m * args.ldc * SizeOf(*args.c_dtype);
  char* scratch = static_cast<char*>(Allocate(kCacheBytes + c_bytes));
  if (scratch == nullptr) return -1;
  if (c_bytes > 0) trial.c = scratch + kCacheBytes;
  cudaEvent_t begin, end;
  MIMO_CUDA_CHECK(cudaEventCreate(&begin));
  MIMO_CUDA_CHECK(cudaEventCreate(&end));
  const auto milliseconds = [&](size_t i) {
    MIMO_CUDA_CHECK(cudaMemsetAsync(scratch, 0, kCacheBytes, stream));
    MIMO_CUDA_CHECK(cudaEventRecord(begin, stream));
    const cublasStatus_t status = Launch(problem, candidates[i], trial, stream);
    MIMO_CUDA_CHECK(cudaEventRecord(end, stream));
    MIMO_CUDA_CHECK(cudaEventSynchronize(end));
    float time;
    MIMO_CUDA_CHECK(cudaEventElapsedTime(&time, begin, end));
    return status == CUBLAS_STATUS_SUCCESS
               ? time
               : std::numeric_limits<float>::infinity();
  };
  const auto median = [](std::vector<float> values) {
    const auto middle = values.begin() + values.size() / 2;
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  };
  // Right after another product's, the clock is there.
  if (absl::Now() - tuned_ > kCool)
    for (float spent = 0; spent < kWarmUpMs;) spent += milliseconds(0);
  std::vector<std::vector<float>> times(candidates.size());
  for (int round = 0; round <= kRounds; ++round) {
    for (size_t i = 0; i < candidates.size(); ++i) {
      const float time = milliseconds(i);
      if (round > 0) times[i].push_back(time);  // the first warms up
    }
  }
  size_t best = 0;
  for (size_t i = 1; i < candidates.size(); ++i)
    if (median(times[i]) < median(times[best])) best = i;
  std::vector<float> ratios;
  for (int pair = 0; pair < kPairs; ++pair) {
    const float first = milliseconds(0);
    ratios.push_back(milliseconds(best) / first);
  }
  if (median(ratios) > kGain) best = 0;
  tuned_ = absl::Now();
  MIMO_CUDA_CHECK(cudaEventDestroy(begin));
  MIMO_CUDA_CHECK(cudaEventDestroy(end));
  MIMO_CUDA_CHECK(cudaFree(scratch));
  return best;
}

GemmPlans::Plan& GemmPlans::Find(GemmProblem& problem, const GemmArgs& args,
                                 cudaStream_t stream) {
  const auto [it, is_new] = plans_.try_emplace(problem.key);
  Plan& plan = it->second;
  const bool tune = !path_.empty() && !plan.tuned && (is_new || plan.exists) &&
                    !IsCapturing(stream);
  if (!is_new && !tune) return plan;
  if (const auto known = file_.find(problem.key); known != file_.end()) {
    cublasLtMatmulHeuristicResult_t result;
    if (cublasLtMatmulAlgoCheck(
            handle_, &problem.product, &problem.a, &problem.b, &problem.c,
            &problem.c, &known->second, &result) == CUBLAS_STATUS_SUCCESS &&
        result.workspaceSize <= kWorkspaceBytes) {
      plan = {.exists = true, .tuned = true, .algo = known->second};
      return plan;
    }
  }
  const std::vector<cublasLtMatmulAlgo_t> candidates =
      Candidates(handle_, problem, tune ? kCandidates : 1);
  plan.exists = !candidates.empty();
  if (!plan.exists) return plan;
  plan.algo = candidates[0];
  if (!tune) return plan;
  plan.tuned = true;
  if (const int best = Fastest(problem, candidates, args, stream); best >= 0) {
    plan.algo = file_[problem.key] = candidates[best];
    Save();
  }
  return plan;
}

void GemmPlans::Autotune(const std::string& path) {
  absl::MutexLock lock(&mutex_);
  path_ = path;
  plans_.clear();
  Load();
}

std::string GemmPlans::FileHeader() const {
  cudaDeviceProp gpu;
  MIMO_CUDA_CHECK(cudaGetDeviceProperties(&gpu, 0));
  return absl::StrCat("mimo-gemm 2 cublasLt ", cublasLtGetVersion(), " ",
                      gpu.name);
}

// A header, then a line for each plan: the key, the algorithm's words, ";".
void GemmPlans::Load() {
  file_.clear();
  std::ifstream in(path_);
  std::string line;
  if (!std::getline(in, line)) return;  // a new file
  const auto ignore = [&](absl::string_view why) {
    LOG(WARNING) << path_ << ": " << why << "; ignored, tuning anew";
    file_.clear();
  };
  if (line != FileHeader()) return ignore("not of this GPU and cuBLASLt");
  while (std::getline(in, line)) {
    std::istringstream words(line);
    GemmKey key;
    cublasLtMatmulAlgo_t algo;
    for (int64_t& word : key) words >> word;
    for (uint64_t& word : algo.data) words >> word;
    std::string end;
    if (!(words >> end) || end != ";") return ignore("damaged");
    file_[key] = algo;
  }
}

void GemmPlans::Save() const {
  const std::string written = absl::StrCat(path_, ".", getpid());
  std::ofstream out(written);
  out << FileHeader() << "\n";
  for (const auto& [key, algo] : file_) {
    for (int64_t word : key) out << word << " ";
    for (uint64_t word : algo.data) out << word << " ";
    out << ";\n";
  }
  out.close();
  if (!out || std::rename(written.c_str(), path_.c_str()) != 0)
    LOG(WARNING) << path_ << ": cannot be written; the tuning is not kept";
}

}  // namespace mimo::kernels
