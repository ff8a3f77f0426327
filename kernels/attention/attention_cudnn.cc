// Flash attention by cuDNN: the graphs of matrix products, pointwise operations
// and reductions that its fused engines recognise. The order of the operations
// is part of the pattern; it is that of NVIDIA's cudnn-frontend,
// scaled_dot_product_flash_attention.h.
#include <cuda_runtime.h>
#include <cudnn_graph.h>

#include <bit>
#include <initializer_list>
#include <limits>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/log/check.h"
#include "absl/synchronization/mutex.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/cudnn_graph.h"
#include "kernels/base/cuda_check.h"

namespace mimo::kernels {
namespace {

using cudnn::Dims;
using cudnn::Graph;
using cudnn::Packed;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A plan with what the caller does not bring, in device memory for good.
struct Plan {
  std::unique_ptr<cudnn::Plan> plan;
  void* workspace = nullptr;         // of a forward
  int32_t* query_lengths = nullptr;  // [B], all Sq; if padded
};

// What a plan is for.
struct Key {
  AttentionShape shape;
  int64_t q_stride, kv_stride, kv_batch_stride, dq_stride, dkv_stride;
  bool padded;  // with key_lengths
  bool backward;
  bool unordered;  // the backward may add up dq in any order

  auto Tie() const {
    return std::make_tuple(shape.batch, shape.seq_q, shape.seq_k, shape.heads,
                           shape.kv_heads, shape.head_dim, shape.causal,
                           std::bit_cast<int64_t>(shape.scale), q_stride,
                           kv_stride, kv_batch_stride, dq_stride, dkv_stride,
                           padded, backward, unordered);
  }
  friend bool operator<(const Key& a, const Key& b) {
    return a.Tie() < b.Tie();
  }
};

constexpr cudnnDataType_t kBf16 = CUDNN_DATA_BFLOAT16;
constexpr cudnnDataType_t kFloat = CUDNN_DATA_FLOAT;

// The part of both graphs in which scores get their masks.
struct Masks {
  Graph::Tensor query_lengths = 0, key_lengths = 0;  // [B, 1, 1, 1] int32
  Graph::Tensor hidden = 0;                          // -inf

  Graph::Tensor Pad(Graph& graph, const Dims& dims, Graph::Tensor z) const {
    if (key_lengths == 0) return z;
    const auto row = graph.Index(2, dims, z), column = graph.Index(3, dims, z);
    const auto real_row =
        graph.Compare(CUDNN_POINTWISE_CMP_LT, dims, row, query_lengths);
    const auto real_column =
        graph.Compare(CUDNN_POINTWISE_CMP_LT, dims, column, key_lengths);
    const auto real =
        graph.Compare(CUDNN_POINTWISE_LOGICAL_AND, dims, real_row, real_column);
    return graph.Map(CUDNN_POINTWISE_BINARY_SELECT, kFloat, dims, z, hidden,
                     real);
  }
  Graph::Tensor Causal(Graph& graph, const Dims& dims, Graph::Tensor z) const {
    const auto row = graph.Index(2, dims, z), column = graph.Index(3, dims, z);
    const auto seen = graph.Compare(CUDNN_POINTWISE_CMP_GE, dims, row, column);
    return graph.Map(CUDNN_POINTWISE_BINARY_SELECT, kFloat, dims, z, hidden,
                     seen);
  }
};

// [B, heads, tokens, D] of rows with a stride; transposed: [B, heads, D, S].
Graph::Tensor Rows(Graph& graph, const Key& key, int64_t heads, int64_t tokens,
                   int64_t stride, int64_t batch_stride, bool transposed) {
  const int64_t dim = key.shape.head_dim;
  Dims dims = {key.shape.batch, heads, tokens, dim};
  Dims strides = {batch_stride != 0 ? batch_stride : tokens * stride, dim,
                  stride, 1};
  if (transposed) {
    std::swap(dims[2], dims[3]);
    std::swap(strides[2], strides[3]);
  }
  return graph.Memory(kBf16, dims, strides);
}

// Pointers: q, k, v, out, lse, then query and key lengths if padded.
std::unique_ptr<cudnn::Plan> BuildForward(const Key& key,
                                          cudnnHandle_t handle) {
  const AttentionShape& s = key.shape;
  const Dims scores = {s.batch, s.heads, s.seq_q, s.seq_k};
  const Dims row = {s.batch, s.heads, s.seq_q, 1};
  const Dims lengths = {s.batch, 1, 1, 1};
  Graph graph;
  Masks masks;
  const auto scale = graph.Scalar(s.scale);
  if (s.causal || key.padded) masks.hidden = graph.Scalar(-kInfinity);
  const auto q = Rows(graph, key, s.heads, s.seq_q, key.q_stride, 0, false);
  const auto k = Rows(graph, key, s.kv_heads, s.seq_k, key.kv_stride,
                      key.kv_batch_stride, true);
  const auto v = Rows(graph, key, s.kv_heads, s.seq_k, key.kv_stride,
                      key.kv_batch_stride, false);
  const auto out =
      Rows(graph, key, s.heads, s.seq_q, s.heads * s.head_dim, 0, false);
  const auto lse = graph.Memory(kFloat, row, Packed(row));
  if (key.padded) {
    masks.query_lengths = graph.Memory(CUDNN_DATA_INT32, lengths, Dims(4, 1));
    masks.key_lengths = graph.Memory(CUDNN_DATA_INT32, lengths, Dims(4, 1));
  }

  auto z = graph.Virtual(kFloat, scores, Packed(scores));
  graph.Matmul(q, k, z, masks.query_lengths, masks.key_lengths, 0);
  z = graph.Map(CUDNN_POINTWISE_MUL, kFloat, scores, z, scale);
  z = masks.Pad(graph, scores, z);
  if (s.causal) z = masks.Causal(graph, scores, z);
  const auto max = graph.Virtual(kFloat, row, Packed(row));
  graph.Reduce(CUDNN_REDUCE_TENSOR_MAX, z, max);
  z = graph.Map(CUDNN_POINTWISE_SUB, kFloat, scores, z, max);
  const auto e = graph.Map(CUDNN_POINTWISE_EXP, kFloat, scores, z);
  const auto sum = graph.Virtual(kFloat, row, Packed(row));
  graph.Reduce(CUDNN_REDUCE_TENSOR_ADD, e, sum);
  const auto log = graph.Map(CUDNN_POINTWISE_LOG, kFloat, row, sum);
  graph.Pointwise(CUDNN_POINTWISE_ADD, kFloat, max, log, 0, lse);
  const auto p = graph.Map(CUDNN_POINTWISE_DIV, kBf16, scores, e, sum);
  graph.Matmul(p, v, out, masks.query_lengths, 0, masks.key_lengths);
  return graph.Build(handle);
}

// Pointers: q, k, v, out, lse, dout, dq, dk, dv, delta [B, N, Sq] float, dq's
// sums [B, N, Sq, D] float if unordered, query and key lengths if padded.
std::unique_ptr<cudnn::Plan> BuildBackward(const Key& key,
                                           cudnnHandle_t handle) {
  const AttentionShape& s = key.shape;
  const int64_t out_stride = s.heads * s.head_dim;
  const Dims scores = {s.batch, s.heads, s.seq_q, s.seq_k};
  const Dims transposed = {s.batch, s.heads, s.seq_k, s.seq_q};
  const Dims across = {s.heads * s.seq_q * s.seq_k, s.seq_q * s.seq_k, 1,
                       s.seq_k};
  const Dims row = {s.batch, s.heads, s.seq_q, 1};
  const Dims queries = {s.batch, s.heads, s.seq_q, s.head_dim};
  const Dims all_keys = {s.batch, s.heads, s.seq_k, s.head_dim};
  const Dims lengths = {s.batch, 1, 1, 1};
  Graph graph;
  Masks masks;
  const auto scale = graph.Scalar(s.scale), one = graph.Scalar(1);
  if (s.causal || key.padded) masks.hidden = graph.Scalar(-kInfinity);
  const auto q = Rows(graph, key, s.heads, s.seq_q, key.q_stride, 0, false);
  const auto k = Rows(graph, key, s.kv_heads, s.seq_k, key.kv_stride, 0, true);
  const auto v = Rows(graph, key, s.kv_heads, s.seq_k, key.kv_stride, 0, true);
  const auto out = Rows(graph, key, s.heads, s.seq_q, out_stride, 0, false);
  const auto lse = graph.Memory(kFloat, row, Packed(row));
  const auto dout = Rows(graph, key, s.heads, s.seq_q, out_stride, 0, false);
  const auto dq = Rows(graph, key, s.heads, s.seq_q, key.dq_stride, 0, false);
  const auto dk =
      Rows(graph, key, s.kv_heads, s.seq_k, key.dkv_stride, 0, false);
  const auto dv =
      Rows(graph, key, s.kv_heads, s.seq_k, key.dkv_stride, 0, false);
  const auto delta = graph.Memory(kFloat, row, Packed(row));
  const auto dq_sums =
      key.unordered ? graph.Memory(kFloat, queries, Packed(queries)) : 0;
  if (key.padded) {
    masks.query_lengths = graph.Memory(CUDNN_DATA_INT32, lengths, Dims(4, 1));
    masks.key_lengths = graph.Memory(CUDNN_DATA_INT32, lengths, Dims(4, 1));
  }
  // Of p or dz: [B, N, Sk, Sq].
  const auto transpose = [&](Graph::Tensor x) {
    const auto y = graph.Virtual(kBf16, transposed, across);
    graph.Reshape(x, y);
    return y;
  };
  // y = x^T rows, summed over a group's heads.
  const auto sum_over_queries = [&](Graph::Tensor x, Graph::Tensor rows,
                                    Graph::Tensor y) {
    const bool one_head = s.heads == s.kv_heads;
    const auto each =
        one_head ? y : graph.Virtual(kBf16, all_keys, Packed(all_keys));
    graph.Matmul(transpose(x), rows, each, masks.key_lengths, 0,
                 masks.query_lengths);
    if (!one_head) graph.Reduce(CUDNN_REDUCE_TENSOR_ADD, each, y);
  };

  const auto product =
      graph.Map(CUDNN_POINTWISE_MUL, kFloat, queries, dout, out);
  const auto dot = graph.Virtual(kFloat, row, Packed(row));
  graph.Reduce(CUDNN_REDUCE_TENSOR_ADD, product, dot);
  graph.Pointwise(CUDNN_POINTWISE_MUL, kFloat, dot, one, 0, delta);

  auto z = graph.Virtual(kFloat, scores, Packed(scores));
  graph.Matmul(q, k, z, masks.query_lengths, masks.key_lengths, 0);
  z = graph.Map(CUDNN_POINTWISE_MUL, kFloat, scores, z, scale);
  z = graph.Map(CUDNN_POINTWISE_SUB, kFloat, scores, z, lse);
  z = masks.Pad(graph, scores, z);
  if (s.causal) z = masks.Causal(graph, scores, z);
  const auto p = graph.Map(CUDNN_POINTWISE_EXP, kFloat, scores, z);
  sum_over_queries(p, dout, dv);

  auto dz = graph.Virtual(kFloat, scores, Packed(scores));
  graph.Matmul(dout, v, dz, masks.query_lengths, masks.key_lengths, 0);
  dz = graph.Map(CUDNN_POINTWISE_SUB, kFloat, scores, dz, delta);
  dz = graph.Map(CUDNN_POINTWISE_MUL, kFloat, scores, dz, p);
  dz = graph.Map(CUDNN_POINTWISE_MUL, kFloat, scores, dz, scale);
  sum_over_queries(dz, q, dk);

  const auto k_rows =
      graph.Virtual(kFloat, {s.batch, s.kv_heads, s.seq_k, s.head_dim},
                    {s.seq_k * key.kv_stride, s.head_dim, key.kv_stride, 1});
  graph.Reshape(k, k_rows);
  graph.Matmul(dz, k_rows, key.unordered ? dq_sums : dq, masks.query_lengths, 0,
               masks.key_lengths);
  if (key.unordered)
    graph.Pointwise(CUDNN_POINTWISE_IDENTITY, kFloat, dq_sums, 0, 0, dq);
  return graph.Build(handle);
}

// The process's plans and their handle, which one thread uses at a time.
class Plans {
 public:
  static Plans& Get() {
    static auto* const plans = new Plans;
    return *plans;
  }

  // Null where cuDNN has none. Compiles for up to a second when first asked,
  // and allocates: not while a graph is captured.
  const Plan* Find(const Key& key) {
    absl::MutexLock lock(&mutex_);
    const auto [at, is_new] = plans_.try_emplace(key);
    if (is_new && handle_ != nullptr) at->second = Build(key);
    return at->second.plan != nullptr ? &at->second : nullptr;
  }

  void Run(const Plan& plan, const std::vector<const void*>& pointers,
           void* workspace, Stream stream) {
    absl::MutexLock lock(&mutex_);
    CHECK_EQ(cudnnSetStream(handle_, static_cast<cudaStream_t>(stream.raw)),
             CUDNN_STATUS_SUCCESS);
    const cudnnStatus_t status =
        cudnn::Execute(handle_, *plan.plan, pointers, workspace);
    CHECK_EQ(status, CUDNN_STATUS_SUCCESS) << cudnnGetErrorString(status);
  }

 private:
  Plans() {
    if (cudnnCreate(&handle_) != CUDNN_STATUS_SUCCESS) handle_ = nullptr;
  }

  Plan Build(const Key& key) const {
    Plan made = {key.backward ? BuildBackward(key, handle_)
                              : BuildForward(key, handle_)};
    if (made.plan == nullptr) return made;
    if (!key.backward && made.plan->workspace_bytes > 0)
      MIMO_CUDA_CHECK(cudaMalloc(&made.workspace, made.plan->workspace_bytes));
    if (key.padded) {
      const std::vector<int32_t> lengths(key.shape.batch, key.shape.seq_q);
      const int64_t bytes = lengths.size() * sizeof(int32_t);
      MIMO_CUDA_CHECK(cudaMalloc(&made.query_lengths, bytes));
      MIMO_CUDA_CHECK(cudaMemcpy(made.query_lengths, lengths.data(), bytes,
                                 cudaMemcpyDefault));
    }
    return made;
  }

  absl::Mutex mutex_;
  cudnnHandle_t handle_ = nullptr;
  std::map<Key, Plan> plans_ ABSL_GUARDED_BY(mutex_);
};

// The shapes that the graphs above are for: cuDNN's causal mask starts at the
// upper left corner, and it reads rows in 16-byte pieces.
bool InScope(const AttentionShape& s, DType dtype, const int32_t* cu_seqlens,
             std::initializer_list<int64_t> strides) {
  for (const int64_t stride : strides) {
    if (stride % 8 != 0) return false;
  }
  return dtype == DType::kBFloat16 && cu_seqlens == nullptr && s.batch > 0 &&
         s.seq_q > 0 && s.seq_k > 0 && s.head_dim % 8 == 0 &&
         s.head_dim <= 128 && (!s.causal || s.seq_q == s.seq_k);
}

const Plan* ForwardPlan(const AttentionForwardArgs& args) {
  if (!InScope(args.shape, args.dtype, args.cu_seqlens,
               {args.q_stride, args.kv_stride, args.kv_batch_stride})) {
    return nullptr;
  }
  return Plans::Get().Find({.shape = args.shape,
                            .q_stride = args.q_stride,
                            .kv_stride = args.kv_stride,
                            .kv_batch_stride = args.kv_batch_stride,
                            .padded = args.key_lengths != nullptr});
}

const Plan* BackwardPlan(const AttentionBackwardArgs& args, bool unordered) {
  if (!InScope(
          args.shape, args.dtype, args.cu_seqlens,
          {args.q_stride, args.kv_stride, args.dq_stride, args.dkv_stride})) {
    return nullptr;
  }
  return Plans::Get().Find({.shape = args.shape,
                            .q_stride = args.q_stride,
                            .kv_stride = args.kv_stride,
                            .dq_stride = args.dq_stride,
                            .dkv_stride = args.dkv_stride,
                            .padded = args.key_lengths != nullptr,
                            .backward = true,
                            .unordered = unordered});
}

// In an order that is always the same, cuDNN's backward keeps all of dz: 2 B N
// Sq Sk bytes. No more than this.
constexpr int64_t kMostWorkspaceBytes = int64_t{4} << 30;

// What the backward's workspace holds, in this order.
struct BackwardWorkspace {
  BackwardWorkspace(const AttentionShape& s, const Plan& plan, bool unordered)
      : delta_bytes(Align(s.batch * s.heads * s.seq_q * sizeof(float))),
        sums_bytes(unordered ? delta_bytes * s.head_dim : 0),
        bytes(delta_bytes + sums_bytes + plan.plan->workspace_bytes) {}
  static int64_t Align(int64_t n) { return (n + 255) / 256 * 256; }

  const int64_t delta_bytes, sums_bytes, bytes;
};

// With the strides of one fused projection.
const Plan* UsualBackwardPlan(const AttentionShape& s, bool unordered) {
  const int64_t stride = (s.heads + 2 * s.kv_heads) * s.head_dim;
  return BackwardPlan({.shape = s,
                       .q_stride = stride,
                       .kv_stride = stride,
                       .dq_stride = stride,
                       .dkv_stride = stride,
                       .dtype = DType::kBFloat16},
                      unordered);
}

}  // namespace

bool AttentionForwardCudnnTakes(const AttentionForwardArgs& args) {
  return ForwardPlan(args) != nullptr;
}

void AttentionForwardCudnn(const AttentionForwardArgs& args, Stream stream) {
  const Plan* const plan = ForwardPlan(args);
  CHECK(plan != nullptr);
  std::vector<const void*> pointers = {args.q, args.k, args.v, args.out,
                                       args.lse};
  if (args.key_lengths != nullptr)
    pointers.insert(pointers.end(), {plan->query_lengths, args.key_lengths});
  Plans::Get().Run(*plan, pointers, plan->workspace, stream);
}

bool AttentionBackwardCudnnTakes(const AttentionBackwardArgs& args,
                                 bool unordered) {
  const Plan* const plan = BackwardPlan(args, unordered);
  return plan != nullptr &&
         BackwardWorkspace(args.shape, *plan, unordered).bytes <=
             AttentionBackwardCudnnWorkspaceBytes(args.shape, unordered);
}

void AttentionBackwardCudnn(const AttentionBackwardArgs& args, Stream stream,
                            bool unordered) {
  const Plan* const plan = BackwardPlan(args, unordered);
  CHECK(plan != nullptr);
  const BackwardWorkspace parts(args.shape, *plan, unordered);
  char* const delta = static_cast<char*>(args.workspace);
  char* const sums = delta + parts.delta_bytes;
  std::vector<const void*> pointers = {args.q,   args.k,    args.v,  args.out,
                                       args.lse, args.dout, args.dq, args.dk,
                                       args.dv,  delta};
  if (unordered) pointers.push_back(sums);
  if (args.key_lengths != nullptr)
    pointers.insert(pointers.end(), {plan->query_lengths, args.key_lengths});
  Plans::Get().Run(*plan, pointers, sums + parts.sums_bytes, stream);
}

int64_t AttentionBackwardCudnnWorkspaceBytes(const AttentionShape& shape,
                                             bool unordered) {
  const Plan* const plan = UsualBackwardPlan(shape, unordered);
  return plan == nullptr ? 0 : BackwardWorkspace(shape, *plan, unordered).bytes;
}

}  // namespace mimo::kernels
