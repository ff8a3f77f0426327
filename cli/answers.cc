#include "cli/answers.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/base/parallel.h"
#include "kernels/base/status_macros.h"
#include "mimo/parallel/sum_over_ranks.h"
#include "models/generate/generate.h"
#include "models/mimo_model/mimo_stage.h"

namespace mimo {
namespace {

constexpr int64_t kMaxAnswerTokens = 48;

absl::StatusOr<std::vector<Answer>> Ask(const Context& ctx,
                                        const MimoModel& model,
                                        const ConversationTemplate& format,
                                        const Conversation& conversation,
                                        Sample sample) {
  const int64_t images = conversation.pictures.size();
  std::vector<Answer> answers;
  const ModalityInputs inputs =
      model.InputsOf(ctx, Collate({sample}, format.tokenizer.pad_id()));
  for (const Turn& turn : conversation.turns) {
    const Turn alone = {.question = PlaceImages(turn.question, images)};
    MIMO_ASSIGN_OR_RETURN(std::vector<int32_t> prompt,
                          format.EncodePrompt({alone}, images));
    MIMO_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                          Generate(ctx, model, std::move(prompt), inputs,
                                   {.max_new_tokens = kMaxAnswerTokens,
                                    .eos_id = format.tokenizer.eos_id()}));
    const Tokenizer& tokenizer = format.tokenizer;
    answers.push_back({&conversation, &turn, tokenizer.Decode(tokens),
                       tokenizer.Decode(tokenizer.Encode(turn.answer))});
  }
  return answers;
}

// one(i) of conversations [begin, end), each on a thread: single tokens are too
// little work to share out.
absl::Status SideBySide(int64_t begin, int64_t end,
                        absl::FunctionRef<absl::Status(int64_t i)> one) {
  const int64_t count = end - begin;
  std::vector<absl::Status> statuses(count);
  ParallelFor(count, 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) statuses[i] = one(begin + i);
  });
  for (const absl::Status& status : statuses) MIMO_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SplitAnswers> AskSplit(const Context& ctx,
                                      const MimoModel& model,
                                      const RunData& data, const Split& split,
                                      uint64_t seed, int64_t limit) {
  MIMO_ASSIGN_OR_RETURN(const auto dataset,
                        ValidationDataset(data.config, split, *data.format,
                                          data.image_size, seed));
  int64_t count = dataset->size();
  if (limit > 0) count = std::min(count, limit);
  std::vector<std::vector<Answer>> answers(count);
  std::vector<double> losses(count);
  std::vector<int64_t> labels(count);
  MIMO_RETURN_IF_ERROR(SideBySide(0, count, [&](int64_t i) -> absl::Status {
    MIMO_ASSIGN_OR_RETURN(Sample sample, dataset->Get(i, 0, AllItems));
    const MicroBatch batch = Collate({sample}, data.format->tokenizer.pad_id());
    labels[i] = batch.LabelledTokens();
    MIMO_ASSIGN_OR_RETURN(losses[i], LossSum(ctx, model, batch));
    MIMO_ASSIGN_OR_RETURN(answers[i],
                          Ask(ctx, model, *data.format, split.conversations[i],
                              std::move(sample)));
    return absl::OkStatus();
  }));
  SplitAnswers out{.lm_loss = 0};
  int64_t labelled = 0;
  for (int64_t i = 0; i < count; ++i) {
    out.lm_loss += losses[i];
    labelled += labels[i];
    out.answers.insert(out.answers.end(), answers[i].begin(), answers[i].end());
  }
  out.lm_loss /= std::max<int64_t>(labelled, 1);
  return out;
}

absl::StatusOr<MetricValues> ExactMatches(const Context& ctx,
                                          const MimoModel& model,
                                          const RunData& data,
                                          const Split& split, uint64_t seed,
                                          Communicator* world) {
  MIMO_ASSIGN_OR_RETURN(const auto dataset,
                        ValidationDataset(data.config, split, *data.format,
                                          data.image_size, seed));
  std::map<std::string, int64_t> asked;
  for (const Conversation& conversation : split.conversations)
    for (const Turn& turn : conversation.turns) ++asked[turn.kind];
  std::vector<double> right(asked.size());
  const int64_t count = dataset->size();
  const int64_t share = world == nullptr ? count : 1;
  const int64_t rank = world == nullptr ? 0 : world->rank();
  const int64_t ranks = world == nullptr ? 1 : world->size();
  for (int64_t round = 0; round < count; round += share * ranks) {
    const int64_t begin = std::min(round + rank * share, count);
    const int64_t end = std::min(begin + share, count);
    std::vector<std::vector<Answer>> answers(end - begin);
    MIMO_RETURN_IF_ERROR(SideBySide(begin, end, [&](int64_t i) -> absl::Status {
      MIMO_ASSIGN_OR_RETURN(Sample sample, dataset->Get(i, 0, AllItems));
      MIMO_ASSIGN_OR_RETURN(answers[i - begin],
                            Ask(ctx, model, *data.format,
                                split.conversations[i], std::move(sample)));
      return absl::OkStatus();
    }));
    std::vector<double> found(asked.size());
    for (const std::vector<Answer>& some : answers) {
      for (const Answer& answer : some) {
        const auto kind = asked.find(answer.turn->kind);
        found[std::distance(asked.begin(), kind)] += answer.right();
      }
    }
    MIMO_RETURN_IF_ERROR(
        SumOverRanks(world, *ctx.allocator, absl::MakeSpan(found)));
    for (size_t k = 0; k < right.size(); ++k) right[k] += found[k];
  }
  MetricValues values;
  for (const auto& [kind, times] : asked)
    values.emplace_back(MetricName(kind), right[values.size()] / times);
  return values;
}

std::string MetricName(const std::string& kind) {
  return absl::StrCat(kind.empty() ? "answer" : kind, "_exact_match");
}

std::map<std::string, double> ExactByKind(const std::vector<Answer>& answers) {
  std::map<std::string, double> right;
  std::map<std::string, int64_t> asked;
  for (const Answer& answer : answers) {
    right[answer.turn->kind] += answer.right();
    ++asked[answer.turn->kind];
  }
  for (auto& [kind, share] : right) share /= asked[kind];
  return right;
}

}  // namespace mimo
