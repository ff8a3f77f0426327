#include "kernels/attention/cudnn_graph.h"

#include <algorithm>

#include "absl/log/check.h"

namespace mimo::cudnn {

Descriptor Api::Create(cudnnBackendDescriptorType_t type) {
  void* made = nullptr;
  if (ok_) Check(cudnnBackendCreateDescriptor(type, &made));
  return Descriptor(made);
}

void Api::Set(const Descriptor& d, cudnnBackendAttributeName_t name,
              cudnnBackendAttributeType_t type, int64_t count,
              const void* values) {
  if (ok_) Check(cudnnBackendSetAttribute(d.get(), name, type, count, values));
}

void Api::Set(const Descriptor& d, cudnnBackendAttributeName_t name,
              const Descriptor& value) {
  void* raw = value.get();
  Set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw);
}

void Api::Finalize(const Descriptor& d) {
  if (ok_) Check(cudnnBackendFinalize(d.get()));
}

cudnnStatus_t Execute(cudnnHandle_t handle, const Plan& plan,
                      const std::vector<const void*>& pointers,
                      void* workspace) {
  std::vector<const void*> all;
  for (const float& scalar : plan.scalars) all.push_back(&scalar);
  all.insert(all.end(), pointers.begin(), pointers.end());
  CHECK_EQ(all.size(), plan.ids.size());
  Api api;
  const Descriptor pack = api.Create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  api.Set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64,
          plan.ids.size(), plan.ids.data());
  api.Set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
          all.size(), all.data());
  api.Set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR,
          workspace);
  api.Finalize(pack);
  CHECK(api.ok());
  return cudnnBackendExecute(handle, plan.descriptor.get(), pack.get());
}

Dims Packed(const Dims& d) {
  return {d[1] * d[2] * d[3], d[2] * d[3], d[3], 1};
}

Graph::Tensor Graph::Scalar(float value) {
  const Dims one(4, 1);
  const Tensor made = Make(CUDNN_DATA_FLOAT, one, one, false, true);
  plan_->ids.push_back(made);
  plan_->scalars.push_back(value);
  return made;
}

Graph::Tensor Graph::Memory(cudnnDataType_t type, const Dims& dims,
                            const Dims& strides) {
  const Tensor made = Make(type, dims, strides, false, false);
  plan_->ids.push_back(made);
  return made;
}

Graph::Tensor Graph::Virtual(cudnnDataType_t type, const Dims& dims,
                             const Dims& strides) {
  return Make(type, dims, strides, true, false);
}

void Graph::Pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t compute,
                      Tensor x, Tensor b, Tensor t, Tensor y, int64_t axis) {
  Descriptor pointwise = api_.Create(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  api_.Set(pointwise, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE,
           mode);
  api_.Set(pointwise, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE,
           compute);
  if (axis >= 0)
    api_.Set(pointwise, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
  api_.Finalize(pointwise);
  AddOperation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
               {{CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x},
                {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b},
                {CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t},
                {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y}},
               CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR,
               std::move(pointwise));
}

Graph::Tensor Graph::Map(cudnnPointwiseMode_t mode, cudnnDataType_t type,
                         const Dims& dims, Tensor x, Tensor b, Tensor t) {
  const Tensor y = Virtual(type, dims, Packed(dims));
  Pointwise(mode, CUDNN_DATA_FLOAT, x, b, t, y);
  return y;
}

Graph::Tensor Graph::Index(int64_t axis, const Dims& dims, Tensor x) {
  const Tensor y = Virtual(CUDNN_DATA_INT32, dims, Packed(dims));
  Pointwise(CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, x, 0, 0, y, axis);
  return y;
}

Graph::Tensor Graph::Compare(cudnnPointwiseMode_t mode, const Dims& dims,
                             Tensor a, Tensor b) {
  const Tensor y = Virtual(CUDNN_DATA_BOOLEAN, dims, Packed(dims));
  Pointwise(mode, CUDNN_DATA_BOOLEAN, a, b, 0, y);
  return y;
}

void Graph::Matmul(Tensor a, Tensor b, Tensor c, Tensor m_lengths,
                   Tensor n_lengths, Tensor k_lengths) {
  Descriptor matmul = api_.Create(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  api_.Set(matmul, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE,
           CUDNN_DATA_FLOAT);
  api_.Finalize(matmul);
  AddOperation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR,
               {{CUDNN_ATTR_OPERATION_MATMUL_ADESC, a},
                {CUDNN_ATTR_OPERATION_MATMUL_BDESC, b},
                {CUDNN_ATTR_OPERATION_MATMUL_CDESC, c},
                {CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, m_lengths},
                {CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, n_lengths},
                {CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, k_lengths}},
               CUDNN_ATTR_OPERATION_MATMUL_DESC, std::move(matmul));
}

void Graph::Reduce(cudnnReduceTensorOp_t op, Tensor x, Tensor y) {
  Descriptor reduction = api_.Create(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  api_.Set(reduction, CUDNN_ATTR_REDUCTION_OPERATOR,
           CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, op);
  api_.Set(reduction, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE,
           CUDNN_DATA_FLOAT);
  api_.Finalize(reduction);
  AddOperation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR,
               {{CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x},
                {CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y}},
               CUDNN_ATTR_OPERATION_REDUCTION_DESC, std::move(reduction));
}

void Graph::Reshape(Tensor x, Tensor y) {
  AddOperation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR,
               {{CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x},
                {CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y}},
               {}, nullptr);
}

std::unique_ptr<Plan> Graph::Build(cudnnHandle_t handle) {
  const Descriptor graph = api_.Create(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  std::vector<void*> operations;
  for (const Descriptor& d : operations_) operations.push_back(d.get());
  api_.Set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
           operations.size(), operations.data());
  api_.Set(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  api_.Finalize(graph);
  const Descriptor heuristic = api_.Create(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  api_.Set(heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  api_.Set(heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE,
           CUDNN_HEUR_MODE_A);
  api_.Finalize(heuristic);

  constexpr int64_t kEngines = 8;
  std::vector<Descriptor> configs;
  std::vector<void*> raw;
  for (int64_t i = 0; i < kEngines; ++i) {
    configs.push_back(api_.Create(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    raw.push_back(configs.back().get());
  }
  if (!api_.ok()) return nullptr;
  int64_t engines = 0;
  api_.Check(cudnnBackendGetAttribute(
      heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
      CUDNN_TYPE_BACKEND_DESCRIPTOR, kEngines, &engines, raw.data()));
  if (!api_.ok()) return nullptr;
  for (int64_t i = 0; i < std::min(engines, kEngines); ++i) {
    Api api;
    plan_->descriptor = api.Create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    api.Set(plan_->descriptor, CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
            CUDNN_TYPE_HANDLE, handle);
    api.Set(plan_->descriptor, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
            configs[i]);
    api.Finalize(plan_->descriptor);
    if (!api.ok()) continue;
    int64_t count = 0;
    api.Check(cudnnBackendGetAttribute(
        plan_->descriptor.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
        CUDNN_TYPE_INT64, 1, &count, &plan_->workspace_bytes));
    if (api.ok()) return std::move(plan_);
  }
  return nullptr;
}

Graph::Tensor Graph::Make(cudnnDataType_t type, const Dims& dims,
                          const Dims& strides, bool is_virtual, bool by_value) {
  const Tensor id = tensors_.size() + 1;
  Descriptor d = api_.Create(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  api_.Set(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id);
  api_.Set(d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
  api_.Set(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, int64_t{16});
  api_.Set(d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, dims.size(),
           dims.data());
  api_.Set(d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides.size(),
           strides.data());
  api_.Set(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, is_virtual);
  api_.Set(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, by_value);
  api_.Finalize(d);
  tensors_.push_back(std::move(d));
  return id;
}

void Graph::AddOperation(
    cudnnBackendDescriptorType_t type,
    const std::vector<std::pair<cudnnBackendAttributeName_t, Tensor>>& of,
    cudnnBackendAttributeName_t what_name, Descriptor what) {
  Descriptor d = api_.Create(type);
  if (what != nullptr) api_.Set(d, what_name, what);
  for (const auto& [name, tensor] : of) {
    if (tensor != 0) api_.Set(d, name, tensors_[tensor - 1]);
  }
  api_.Finalize(d);
  operations_.push_back(std::move(d));
  if (what != nullptr) details_.push_back(std::move(what));
}

}  // namespace mimo::cudnn
