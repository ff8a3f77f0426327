// Graphs of cuDNN's C backend API and the plans that it compiles for them.
// A call that fails makes the whole graph fail: Build then returns null.
#ifndef MIMO_KERNELS_ATTENTION_CUDNN_GRAPH_H_
#define MIMO_KERNELS_ATTENTION_CUDNN_GRAPH_H_

#include <cudnn_graph.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace mimo::cudnn {

struct DestroyDescriptor {
  void operator()(void* d) const { cudnnBackendDestroyDescriptor(d); }
};
using Descriptor = std::unique_ptr<void, DestroyDescriptor>;

// Calls cuDNN until one call fails; then does nothing more.
class Api {
 public:
  bool ok() const { return ok_; }
  void Check(cudnnStatus_t status) {
    ok_ = ok_ && status == CUDNN_STATUS_SUCCESS;
  }
  Descriptor Create(cudnnBackendDescriptorType_t type);
  void Set(const Descriptor& d, cudnnBackendAttributeName_t name,
           cudnnBackendAttributeType_t type, int64_t count, const void* values);
  template <typename T>
  void Set(const Descriptor& d, cudnnBackendAttributeName_t name,
           cudnnBackendAttributeType_t type, const T& value) {
    Set(d, name, type, 1, &value);
  }
  void Set(const Descriptor& d, cudnnBackendAttributeName_t name,
           const Descriptor& value);
  void Finalize(const Descriptor& d);

 private:
  bool ok_ = true;
};

// What cuDNN compiled for one graph.
struct Plan {
  Descriptor descriptor;
  int64_t workspace_bytes = 0;
  std::vector<float> scalars;
  std::vector<int64_t> ids;  // of the scalars, then of the tensors in memory
};

// Runs a plan on the handle's stream; `pointers` in the order of the calls of
// Graph::Memory.
cudnnStatus_t Execute(cudnnHandle_t handle, const Plan& plan,
                      const std::vector<const void*>& pointers,
                      void* workspace);

using Dims = std::vector<int64_t>;  // four
Dims Packed(const Dims& dims);      // the strides of a tensor without gaps

// Tensors are numbers; 0 stands for none. Operations compute in float32.
class Graph {
 public:
  using Tensor = int64_t;

  // A number, fixed in the plan. All scalars come before all of Memory.
  Tensor Scalar(float value);
  // A tensor that Execute is given.
  Tensor Memory(cudnnDataType_t type, const Dims& dims, const Dims& strides);
  // A tensor between operations, which is never in memory if they are fused.
  Tensor Virtual(cudnnDataType_t type, const Dims& dims, const Dims& strides);

  // y = mode(x), mode(x, b), or t ? x : b.
  void Pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t compute, Tensor x,
                 Tensor b, Tensor t, Tensor y, int64_t axis = -1);
  // The same into a new virtual tensor.
  Tensor Map(cudnnPointwiseMode_t mode, cudnnDataType_t type, const Dims& dims,
             Tensor x, Tensor b = 0, Tensor t = 0);
  // The place of each element of x along an axis.
  Tensor Index(int64_t axis, const Dims& dims, Tensor x);
  // a < b and the like, of integers or booleans.
  Tensor Compare(cudnnPointwiseMode_t mode, const Dims& dims, Tensor a,
                 Tensor b);
  // c = a b; the lengths [B] shorten M, N and K of each sample.
  void Matmul(Tensor a, Tensor b, Tensor c, Tensor m_lengths, Tensor n_lengths,
              Tensor k_lengths);
  // Over the dimensions in which y is smaller.
  void Reduce(cudnnReduceTensorOp_t op, Tensor x, Tensor y);
  void Reshape(Tensor x, Tensor y);

  // The first of the engines that cuDNN proposes which compiles; null if none.
  // Once.
  std::unique_ptr<Plan> Build(cudnnHandle_t handle);

 private:
  Tensor Make(cudnnDataType_t type, const Dims& dims, const Dims& strides,
              bool is_virtual, bool by_value);
  void AddOperation(
      cudnnBackendDescriptorType_t type,
      const std::vector<std::pair<cudnnBackendAttributeName_t, Tensor>>& of,
      cudnnBackendAttributeName_t what_name, Descriptor what);

  Api api_;
  std::unique_ptr<Plan> plan_ = std::make_unique<Plan>();
  std::vector<Descriptor> tensors_, details_, operations_;
};

}  // namespace mimo::cudnn

#endif  // MIMO_KERNELS_ATTENTION_CUDNN_GRAPH_H_
