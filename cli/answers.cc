#include "cli/answers.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/base/parallel.h"
#include "kernels/base/status_macros.h"
#include "mimo/parallel/sum_over_ranks.h"
#include "models/generate/generate.h"
#include "models/llava/llava.h"

namespace mimo {
namespace {

constexpr int64_t kMaxAnswerTokens = 48;

absl::StatusOr<std::vector<Answer>> Ask(const Context& ctx,
                                        const MimoModel& model,
                                        const ConversationTemplate& format,
                                        Conversation asked, Sample sample) {
  const auto conversation =
      std::make_shared<const Conversation>(std::move(asked));
  const int64_t images = conversation->pictures.size();
  std::vector<Answer> answers;
  const ModalityInputs inputs =
      model.InputsOf(ctx, Collate({sample}, format.tokenizer.pad_id()));
  for (const Turn& turn : conversation->turns) {
    const Turn alone = {.question = PlaceImages(turn.question, images)};
    MIMO_ASSIGN_OR_RETURN(std::vector<int32_t> prompt,
                          format.EncodePrompt({alone}, images));
    MIMO_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                          Generate(ctx, model, std::move(prompt), inputs,
                                   {.max_new_tokens = kMaxAnswerTokens,
                                    .eos_id = format.tokenizer.eos_id()}));
    const Tokenizer& tokenizer = format.tokenizer;
    answers.push_back({conversation, &turn, tokenizer.Decode(tokens),
                       tokenizer.Decode(tokenizer.Encode(turn.answer))});
  }
  return answers;
}

// one(i) of `count` conversations, each on a thread: single tokens are too
// little work to share out.
absl::Status SideBySide(int64_t count,
                        absl::FunctionRef<absl::Status(int64_t i)> one) {
  std::vector<absl::Status> statuses(count);
  ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) statuses[i] = one(i);
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
  MIMO_RETURN_IF_ERROR(SideBySide(count, [&](int64_t i) -> absl::Status {
    MIMO_ASSIGN_OR_RETURN(Sample sample, dataset->Text(i, 0));
    MIMO_ASSIGN_OR_RETURN(sample.modalities[kImages],
                          dataset->Items(i, 0, kImages));
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

absl::StatusOr<MetricValues> ExactMatches(
    MimoStage& stage, BatchSource& questions, const Split& split,
    const DataShare& share, int64_t micro_batches, Communicator* world,
    Allocator& allocator) {
  std::vector<std::string> kinds;  // of the questions
  for (size_t i = 0; i < split.conversations.size(); ++i) {
    const Conversation conversation = split.conversations[i];
    for (const Turn& turn : conversation.turns) kinds.push_back(turn.kind);
  }
  const int64_t count = kinds.size();
  const int64_t first = share.text ? share.text->begin(share.samples) : 0;
  std::map<std::string, int64_t> asked, right;
  MIMO_RETURN_IF_ERROR(questions.Seek(0));
  int64_t done = 0;
  while (done < count) {
    // The last micro-batch goes on with the first questions.
    const int64_t left = (count - done + share.samples - 1) / share.samples;
    std::vector<MicroBatch> batches(std::min(micro_batches, left));
    for (MicroBatch& batch : batches) {
      MIMO_ASSIGN_OR_RETURN(batch, questions.Next());
    }
    MIMO_ASSIGN_OR_RETURN(const auto own, stage.Mistakes(batches));
    std::vector<double> mistakes(batches.size() * share.samples);
    for (size_t m = 0; m < own.size(); ++m) {
      std::copy(own[m].begin(), own[m].end(),
                mistakes.begin() + m * share.samples + first);
    }
    MIMO_RETURN_IF_ERROR(
        SumOverRanks(world, allocator, absl::MakeSpan(mistakes)));
    for (size_t i = 0; i < mistakes.size() && done < count; ++i, ++done) {
      ++asked[kinds[done]];
      right[kinds[done]] += mistakes[i] == 0;
    }
  }
  MetricValues values;
  for (const auto& [kind, times] : asked) {
    values.emplace_back(MetricName(kind),
                        static_cast<double>(right[kind]) / times);
  }
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
