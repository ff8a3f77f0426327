#include "cli/answers.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/parallel.h"
#include "kernels/base/status_macros.h"
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
  std::vector<absl::Status> statuses(count);
  const auto one = [&](int64_t i) -> absl::Status {
    MIMO_ASSIGN_OR_RETURN(Sample sample, dataset->Get(i, 0, AllItems));
    const MicroBatch batch = Collate({sample}, data.format->tokenizer.pad_id());
    labels[i] = batch.LabelledTokens();
    MIMO_ASSIGN_OR_RETURN(losses[i], LossSum(ctx, model, batch));
    MIMO_ASSIGN_OR_RETURN(answers[i],
                          Ask(ctx, model, *data.format, split.conversations[i],
                              std::move(sample)));
    return absl::OkStatus();
  };
  // A conversation a thread: single tokens are too little work to share out.
  ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      statuses[i] = one(i);
    }
  });
  for (const absl::Status& status : statuses) MIMO_RETURN_IF_ERROR(status);
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
