#include "models/mimo_model/alignment.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/ring_attention.h"
#include "mimo/data/batch.h"

namespace mimo {

RankTokens TokensOfRank(absl::Span<const int32_t> lengths, int64_t seq,
                        int cp_size, int cp_rank) {
  std::vector<int32_t> cu_seqlens = {0};  // of the whole
  for (int32_t length : lengths) {
    cu_seqlens.push_back(cu_seqlens.back() +
                         ContextParallelLength(length, cp_size));
  }
  std::vector<int32_t> rows(cu_seqlens.back());
  std::iota(rows.begin(), rows.end(), 0);
  if (cp_size > 1) rows = *ContextParallelRows(cu_seqlens, cp_size, cp_rank);
  RankTokens own;
  for (int32_t row : rows) {
    const auto next =
        std::upper_bound(cu_seqlens.begin(), cu_seqlens.end(), row);
    const int64_t b = next - cu_seqlens.begin() - 1;
    const int32_t position = row - cu_seqlens[b];
    own.positions.push_back(position);
    own.tokens.push_back(position < lengths[b] ? b * seq + position : -1);
  }
  const int32_t chunks = cp_size > 1 ? 2 * cp_size : 1;
  for (int32_t begin : cu_seqlens) own.cu_seqlens.push_back(begin / chunks);
  return own;
}

absl::StatusOr<TokenLayout> LayOutTokens(
    Allocator& allocator, absl::Span<const int32_t> input_ids,
    absl::Span<const int32_t> tokens,
    const std::map<std::string, int64_t>& special_token_ids,
    int64_t vocab_size) {
  std::vector<int32_t> place(input_ids.size(), -1);
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] >= 0) place[tokens[i]] = static_cast<int32_t>(i);
  std::vector<int32_t> text_ids(tokens.size(), -1);
  std::map<int32_t, std::vector<int32_t>> positions;
  for (const auto& [modality, id] : special_token_ids) positions[id];
  for (size_t t = 0; t < input_ids.size(); ++t) {
    const auto found = positions.find(input_ids[t]);
    if (found != positions.end()) {
      found->second.push_back(place[t]);
    } else if (input_ids[t] < 0 || input_ids[t] >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("input_ids: token ", input_ids[t], " at position ", t,
                       ", wanted 0 to ", vocab_size - 1));
    } else if (place[t] >= 0) {
      text_ids[place[t]] = input_ids[t];
    }
  }
  const auto upload = [&](const std::vector<int32_t>& values) {
    return Tensor::From<int32_t>(allocator,
                                 {static_cast<int64_t>(values.size())}, values);
  };
  TokenLayout layout{upload(text_ids), {}};
  for (const auto& [modality, id] : special_token_ids)
    layout.positions[modality] = upload(positions[id]);
  return layout;
}

std::map<std::string, std::vector<int64_t>> SampleRows(
    absl::Span<const int32_t> input_ids, int64_t batch,
    const std::map<std::string, int64_t>& special_token_ids) {
  const int64_t seq = batch == 0 ? 0 : input_ids.size() / batch;
  std::map<std::string, std::vector<int64_t>> rows;
  for (const auto& [modality, id] : special_token_ids) {
    for (int64_t b = 0; b < batch; ++b) {
      const auto sample = input_ids.subspan(b * seq, seq);
      rows[modality].push_back(std::count(sample.begin(), sample.end(), id));
    }
  }
  return rows;
}

absl::Status CheckRowCount(const std::string& modality, int64_t tokens,
                           int64_t rows) {
  if (tokens == rows) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "Number of ", modality, " tokens (", tokens,
      ") does not match number of ", modality, " embeddings (", rows, ")"));
}

absl::Status CheckWidth(const std::string& modality, int64_t columns,
                        int64_t hidden_size) {
  if (columns == hidden_size) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(modality, " embeddings of ", columns, " columns, wanted ",
                   hidden_size, ", the language model's hidden_size"));
}

absl::StatusOr<Var> AlignEmbeddingsByTokenPositions(
    const Context& ctx, const TokenLayout& layout,
    const LanguageModel& language, const ModuleVars& modality_embeddings) {
  if (!layout.text_ids.defined() && modality_embeddings.empty()) {
    return absl::InvalidArgumentError("No modality embeddings provided");
  }
  std::map<std::string, Tensor> unfilled = layout.positions;
  std::vector<PlacedRows> placed;
  for (const auto& [modality, rows] : modality_embeddings) {
    const auto found = layout.positions.find(modality);
    if (found == layout.positions.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("No special token ID defined for "
                       "modality ",
                       modality));
    }
    const int64_t tokens = found->second.numel();
    MIMO_RETURN_IF_ERROR(CheckRowCount(modality, tokens, rows.value.dim(0)));
    MIMO_RETURN_IF_ERROR(
        CheckWidth(modality, rows.value.dim(1), language.hidden_size()));
    unfilled.erase(modality);
    placed.push_back({rows, found->second});
  }
  for (const auto& [modality, positions] : unfilled) {
    MIMO_RETURN_IF_ERROR(CheckRowCount(modality, positions.numel(), 0));
  }
  return language.Embed(ctx, layout.text_ids, placed);
}

std::vector<int32_t> ShiftLabels(absl::Span<const int32_t> labels, int64_t seq,
                                 absl::Span<const int32_t> tokens) {
  std::vector<int32_t> following(tokens.size(), kIgnoreLabel);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const int32_t next = tokens[i] + 1;
    if (tokens[i] >= 0 && next % seq != 0) following[i] = labels[next];
  }
  return following;
}

}  // namespace mimo
