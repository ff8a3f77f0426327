// How a batch becomes what a pass reads.
#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "comm/bridge/bridge_plan.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/cast.h"
#include "mimo/autograd/ops/ring_attention.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {
namespace {

// Labelled rows come in multiples of it on a GPU: few shapes to capture.
constexpr size_t kRowsStep = 128;

// What packing goes by.
absl::Status CheckLengths(const MicroBatch& batch) {
  if (static_cast<int64_t>(batch.lengths.size()) != batch.batch) {
    return absl::InvalidArgumentError(
        absl::StrCat("lengths: of ", batch.lengths.size(), " samples, wanted ",
                     batch.batch));
  }
  for (int32_t length : batch.lengths) {
    if (length >= 1 && length <= batch.seq) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "lengths: a sample of ", length, " tokens, wanted 1 to ", batch.seq));
  }
  return absl::OkStatus();
}

}  // namespace

RankTokens MimoModel::OwnTokens(int64_t batch, int64_t seq,
                                absl::Span<const int32_t> lengths) const {
  if (language_model_ == nullptr) return {};
  const ParallelGroups groups =
      placement_.GroupsOf(role().language_module_name);
  const std::vector<int32_t> whole(batch, static_cast<int32_t>(seq));
  return TokensOfRank(lengths.empty() ? whole : lengths, seq, groups.cp_size(),
                      groups.cp_rank());
}

absl::StatusOr<ModelInputs> MimoModel::Prepare(
    const Context& ctx, absl::Span<const int32_t> input_ids, int64_t batch,
    int64_t seq, ModalityInputs modalities, int64_t cached) const {
  return LayOut(ctx, input_ids, batch, seq, std::move(modalities), cached,
                /*lengths=*/{}, OwnTokens(batch, seq));
}

absl::StatusOr<ModelInputs> MimoModel::LayOut(
    const Context& ctx, absl::Span<const int32_t> input_ids, int64_t batch,
    int64_t seq, ModalityInputs modalities, int64_t cached,
    absl::Span<const int32_t> lengths, const RankTokens& own) const {
  ModelInputs inputs{.batch = batch,
                     .seq = seq,
                     .cached = cached,
                     .modalities = std::move(modalities)};
  // Generated tokens are text.
  const std::map<std::string, int64_t> special =
      cached == 0 ? config_.special_token_ids
                  : std::map<std::string, int64_t>();
  for (const auto& [name, raw] : inputs.modalities) {
    if (config_.modality_submodules_spec.contains(name)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "inputs of modality ", name, ": the model has no such modality"));
  }
  inputs.sample_rows = SampleRows(input_ids, batch, special);
  for (const auto& [modality, rows] : inputs.sample_rows) {
    if (!modalities_.contains(modality)) continue;
    inputs.rows[modality] =
        std::accumulate(rows.begin(), rows.end(), int64_t{0});
  }
  if (language_model_ == nullptr) return inputs;
  const int64_t limit = language_model_->max_sequence_length();
  if (cached + seq > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat("input_ids: sequence of ", cached + seq,
                     " tokens, wanted at most max_sequence_length ", limit));
  }
  const int cp_size =
      placement_.GroupsOf(role().language_module_name).cp_size();
  const int64_t longest =
      lengths.empty() ? seq : *std::ranges::max_element(lengths);
  inputs.seq = ContextParallelLength(longest, cp_size) / cp_size;
  MIMO_ASSIGN_OR_RETURN(inputs.layout,
                        LayOutTokens(*ctx.allocator, input_ids, own.tokens,
                                     special, language_model_->vocab_size()));
  if (lengths.empty()) return inputs;
  const auto upload = [&](const std::vector<int32_t>& values) {
    return Tensor::From<int32_t>(*ctx.allocator,
                                 {static_cast<int64_t>(values.size())}, values);
  };
  inputs.packing = {upload(own.cu_seqlens), upload(own.positions)};
  return inputs;
}

absl::StatusOr<ModelInputs> MimoModel::Prepare(
    const Context& ctx, const MicroBatch& batch,
    const PrepareOptions& options) const {
  absl::Span<const int32_t> lengths;
  if (options.packed && language_model_ != nullptr) {
    MIMO_RETURN_IF_ERROR(CheckLengths(batch));
    lengths = batch.lengths;
  }
  const RankTokens own = OwnTokens(batch.batch, batch.seq, lengths);
  MIMO_ASSIGN_OR_RETURN(
      ModelInputs inputs,
      LayOut(ctx, batch.input_ids, batch.batch, batch.seq, InputsOf(ctx, batch),
             /*cached=*/0, lengths, own));
  MIMO_RETURN_IF_ERROR(ShareRows(batch, inputs));
  if (language_model_ == nullptr) return inputs;
  const std::vector<int32_t> following =
      ShiftLabels(batch.labels, batch.seq, own.tokens);
  const int64_t vocab = language_model_->vocab_size();
  std::vector<int32_t> rows, targets;
  for (size_t i = 0; i < following.size(); ++i) {
    const bool labelled = following[i] != kIgnoreLabel;
    if (labelled && (following[i] < 0 || following[i] >= vocab)) {
      return absl::InvalidArgumentError(
          absl::StrCat("labels: token ", following[i], ", wanted 0 to ",
                       vocab - 1, " or ", kIgnoreLabel));
    }
    if (!labelled && !options.all_rows) continue;
    rows.push_back(static_cast<int32_t>(i));
    targets.push_back(labelled ? following[i] : -1);
    inputs.target_samples.push_back(own.tokens[i] / batch.seq);
  }
  const bool all = rows.size() == following.size();
  if (!all && ctx.compute.device != Device::kCpu) {
    const size_t padded = (rows.size() + kRowsStep - 1) / kRowsStep * kRowsStep;
    const size_t most = following.size() - 1;  // as many as all means all
    rows.resize(std::min(padded, most), -1);
    targets.resize(rows.size(), -1);
  }
  const Shape shape = {static_cast<int64_t>(rows.size())};
  if (!all) {
    inputs.loss_rows = Tensor::From<int32_t>(*ctx.allocator, shape, rows);
  }
  inputs.targets = Tensor::From<int32_t>(*ctx.allocator, shape, targets);
  return inputs;
}

absl::Status MimoModel::ShareRows(const MicroBatch& batch,
                                  ModelInputs& inputs) const {
  // Nobody shares it, or nothing of it is this rank's.
  if (placement_.infra == nullptr || role().modules.empty())
    return absl::OkStatus();
  const auto share = [](const std::vector<int64_t>& rows,
                        DataSlice slice) -> absl::StatusOr<int64_t> {
    MIMO_ASSIGN_OR_RETURN(const std::vector<int64_t> of_slices,
                          RowsOfLanes(rows, slice.size));
    return of_slices[slice.rank];
  };
  const DataSlice text = placement_.SliceOf(role().language_module_name);
  for (const auto& [name, spec] : config_.modality_submodules_spec) {
    const auto found = batch.sample_rows.find(name);
    if (found == batch.sample_rows.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("sample_rows: none of modality ", name,
                       ", wanted those of the global micro-batch"));
    }
    const std::vector<int64_t>& rows = found->second;
    if (language_model_ != nullptr) {
      MIMO_ASSIGN_OR_RETURN(const int64_t wanted, share(rows, text));
      const std::vector<int64_t>& own = inputs.sample_rows[name];
      const int64_t here = std::accumulate(own.begin(), own.end(), int64_t{0});
      if (here != wanted) {
        return absl::InvalidArgumentError(absl::StrCat(
            "input_ids: ", here, " ", name, " tokens, wanted ", wanted,
            ", what sample_rows says of this replica's samples"));
      }
    }
    if (!modalities_.contains(name)) continue;
    MIMO_ASSIGN_OR_RETURN(inputs.rows[name],
                          share(rows, placement_.SliceOf(name)));
  }
  inputs.sample_rows = batch.sample_rows;
  return absl::OkStatus();
}

ModalityInputs MimoModel::InputsOf(const Context& ctx,
                                   const MicroBatch& batch) const {
  ModalityInputs inputs;
  for (const auto& [name, items] : batch.modalities) {
    if (items.shape.empty() || items.shape[0] == 0) continue;
    const auto found = modalities_.find(name);
    if (found == modalities_.end()) {
      // Another rank's, or one that the model has not: then Prepare says so.
      if (!config_.modality_submodules_spec.contains(name)) inputs[name];
      continue;
    }
    const Shape shape(items.shape.begin(), items.shape.end());
    const Tensor values = Cast(
        ctx, Tensor::From<float>(*ctx.allocator, shape, items.values), dtype());
    for (const std::string& encoder : found->second->encoder_names()) {
      inputs[name][encoder] = values;
    }
  }
  return inputs;
}

}  // namespace mimo
