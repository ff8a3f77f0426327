// Where the tokens of a batch take their embeddings from: text from the
// language model's table, special tokens from their modality's rows.
#ifndef MIMO_MODELS_MIMO_MODEL_ALIGNMENT_H_
#define MIMO_MODELS_MIMO_MODEL_ALIGNMENT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "mimo/autograd/tape.h"
#include "models/spec/interfaces.h"

namespace mimo {

// What a cp rank has of the `lengths` first tokens of each sample of a batch
// [B*S], in the order of its rows (mimo/autograd/ops/ring_attention.h). One
// rank has all.
struct RankTokens {
  std::vector<int32_t> tokens;      // which of the batch; -1: padding
  std::vector<int32_t> positions;   // of each in its sample
  std::vector<int32_t> cu_seqlens;  // as Packing's
};
RankTokens TokensOfRank(absl::Span<const int32_t> lengths, int64_t seq,
                        int cp_size = 1, int cp_rank = 0);

// Where the embeddings of a rank's T tokens come from; int32, on the device.
struct TokenLayout {
  Tensor text_ids;  // [T] the id; -1 at special tokens and padding
  // Of each row [n] of a modality for the batch, the place of its token among
  // the rank's; -1: another rank has that one.
  std::map<std::string, Tensor> positions;
};
// `tokens` [T] of the batch `input_ids` [B*S]. Errors: an id that is neither
// special nor in [0, vocab_size).
absl::StatusOr<TokenLayout> LayOutTokens(
    Allocator& allocator, absl::Span<const int32_t> input_ids,
    absl::Span<const int32_t> tokens,
    const std::map<std::string, int64_t>& special_token_ids,
    int64_t vocab_size);

// Special tokens of each modality in each of `batch` samples [B*S]: how many of
// the modality's rows are each sample's.
std::map<std::string, std::vector<int64_t>> SampleRows(
    absl::Span<const int32_t> input_ids, int64_t batch,
    const std::map<std::string, int64_t>& special_token_ids);

// Error: as many rows of a modality as tokens are wanted.
absl::Status CheckRowCount(const std::string& modality, int64_t tokens,
                           int64_t rows);
// Error: a modality's rows of other columns than the language model's.
absl::Status CheckWidth(const std::string& modality, int64_t columns,
                        int64_t hidden_size);

// What passes between modules, and between the stages of one: by the name of
// the module that gives it.
using ModuleVars = std::map<std::string, Var>;

// Embeddings [T, H] (LanguageModel::Embed): text by the language model's table,
// and each modality's rows [n, H] at its special tokens, in order.
// Errors: no id for a modality; counts or widths that differ; special tokens of
// a modality that has no embeddings.
absl::StatusOr<Var> AlignEmbeddingsByTokenPositions(
    const Context& ctx, const TokenLayout& layout,
    const LanguageModel& language, const ModuleVars& modality_embeddings);

// What each of a rank's tokens [T] predicts: of labels [B*S] the one behind it
// in its sample; kIgnoreLabel at a sample's end and of padding.
std::vector<int32_t> ShiftLabels(absl::Span<const int32_t> labels, int64_t seq,
                                 absl::Span<const int32_t> tokens);

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_ALIGNMENT_H_
