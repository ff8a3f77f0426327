// A model's answers to the questions of a split, beside the right ones.
#ifndef MIMO_CLI_ANSWERS_H_
#define MIMO_CLI_ANSWERS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/run_data.h"
#include "comm/base/communicator.h"
#include "mimo/train/metrics_file.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {

struct Answer {
  const Conversation* conversation;
  const Turn* turn;
  std::string text;    // what the model said
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

// The share of each kind of question in `split` that the model answers exactly.
// Each rank of `world` (null: one) has the whole model and asks a part; they
// meet after each conversation, so that none waits long for another.
absl::StatusOr<MetricValues> ExactMatches(const Context& ctx,
                                          const MimoModel& model,
                                          const RunData& data,
                                          const Split& split, uint64_t seed,
                                          Communicator* world);

// "<kind>_exact_match": the name of its share among the metrics.
std::string MetricName(const std::string& kind);

// Kind of question -> share answered exactly.
std::map<std::string, double> ExactByKind(const std::vector<Answer>& answers);

}  // namespace mimo

#endif  // MIMO_CLI_ANSWERS_H_
