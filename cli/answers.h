// A model's answers to the questions of a split, beside the right ones.
#ifndef MIMO_CLI_ANSWERS_H_
#define MIMO_CLI_ANSWERS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/run_data.h"
#include "comm/base/communicator.h"
#include "mimo/data/batch.h"
#include "mimo/tensor/allocator.h"
#include "mimo/train/batch_source.h"
#include "mimo/train/metrics_file.h"
#include "models/mimo_model/mimo_model.h"
#include "models/mimo_model/mimo_stage.h"

namespace mimo {

struct Answer {
  std::shared_ptr<const Conversation> conversation;  // of all its answers
  const Turn* turn;                                  // of it
  std::string text;                                  // what the model said
  std::string wanted;  // the right answer, spelt as the tokenizer does
  bool right() const { return text == wanted; }
};

struct SplitAnswers {
  double lm_loss;  // mean over the labelled tokens of whole conversations
  std::vector<Answer> answers;  // conversation by conversation, turn by turn
};

// Asks each question of `split` alone, greedily, and takes the loss of each
// conversation whole. `limit` > 0: of the first `limit` conversations.
absl::StatusOr<SplitAnswers> AskSplit(const Context& ctx,
                                      const MimoModel& model,
                                      const RunData& data, const Split& split,
                                      uint64_t seed, int64_t limit);

// The share of each kind of question in `split` that the model answers exactly:
// where it would say the right answer's tokens and end there, being each the
// likeliest after the right ones before it. `questions`: the split's
// (Sources), in micro-batches of `share`, of which up to `micro_batches` go at
// a time. Of all ranks of `world` (null: one).
absl::StatusOr<MetricValues> ExactMatches(
    MimoStage& stage, BatchSource& questions, const Split& split,
    const DataShare& share, int64_t micro_batches, Communicator* world,
    Allocator& allocator);

// "<kind>_exact_match": the name of its share among the metrics.
std::string MetricName(const std::string& kind);

// Kind of question -> share answered exactly.
std::map<std::string, double> ExactByKind(const std::vector<Answer>& answers);

}  // namespace mimo

#endif  // MIMO_CLI_ANSWERS_H_
