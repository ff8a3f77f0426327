// GemmPlans: cuBLASLt's algorithm for every kind of product that was run.
#ifndef MIMO_KERNELS_GEMM_GEMM_PLANS_H_
#define MIMO_KERNELS_GEMM_GEMM_PLANS_H_

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/log/log.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kernels/base/out_of_memory.h"
#include "kernels/gemm/gemm.h"

#define MIMO_CUBLAS_CHECK(call)                                         \
  do {                                                                  \
    const cublasStatus_t mimo_status = (call);                          \
    if (mimo_status == CUBLAS_STATUS_ALLOC_FAILED)                      \
      OutOfMemory(Device::kCuda, #call " failed");                      \
    if (mimo_status != CUBLAS_STATUS_SUCCESS)                           \
      LOG(FATAL) << #call ": " << cublasLtGetStatusString(mimo_status); \
  } while (false)

namespace mimo::kernels {

// All that an algorithm may depend on: sizes, leading dimensions, transposes,
// dtypes, beta, epilogue, alignments of the pointers.
using GemmKey = std::array<int64_t, 17>;

// A product in cuBLASLt's words, for `args` that are Checked and not empty.
// cuBLASLt is column-major: it computes c^T = op(b)^T op(a)^T.
struct GemmProblem {
  explicit GemmProblem(const GemmArgs& args);

  GemmKey key;
  cublasLtMatmulDescOpaque_t product;
  cublasLtMatrixLayoutOpaque_t a, b, c;  // a is args.b, b is args.a
  int alignments[3];                     // bytes, of a, b and c
};

class GemmPlans {
 public:
  static GemmPlans& Get();  // the process's

  // Runs the product on the stream; false if cuBLASLt has no algorithm for it.
  bool Run(const GemmArgs& args, cudaStream_t stream);
  void Autotune(const std::string& path);

 private:
  struct Plan {
    bool exists = false, tuned = false;
    cublasLtMatmulAlgo_t algo;
  };

  GemmPlans();
  Plan& Find(GemmProblem& problem, const GemmArgs& args, cudaStream_t stream);
  cublasStatus_t Launch(GemmProblem& problem, const cublasLtMatmulAlgo_t& algo,
                        const GemmArgs& args, cudaStream_t stream);
  // Index of the fastest candidate; -1 when there is no memory to try them.
  // Writes c as the product does.
  int Fastest(GemmProblem& problem,
              const std::vector<cublasLtMatmulAlgo_t>& candidates,
              const GemmArgs& args, cudaStream_t stream);
  void* Workspace(cudaStream_t stream);
  // "mimo-gemm 2", the library's version, the GPU's name.
  std::string FileHeader() const;
  void Load();
  void Save() const;

  absl::Mutex mutex_;  // held by Run and Autotune: guards all that follows
  cublasLtHandle_t handle_;
  std::map<GemmKey, Plan> plans_;
  std::map<GemmKey, cublasLtMatmulAlgo_t> file_;  // what path_ holds
  std::map<cudaStream_t, void*> workspaces_;
  std::string path_;                         // empty: not tuning
  absl::Time tuned_ = absl::InfinitePast();  // when Fastest was last done
};

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_GEMM_GEMM_PLANS_H_
