// mimo evaluate: the validation data through the model's own text.
#include <algorithm>
#include <cstdint>
#include <iostream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "cli/answers.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/compute.h"
#include "cli/config.h"
#include "cli/open_model.h"
#include "cli/run_data.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/file.h"
#include "mimo/data/image/codec.h"
#include "mimo/data/report/baselines.h"
#include "mimo/data/report/contact_sheet.h"
#include "mimo/train/tensors_source.h"
#include "models/mimo_model/mimo_stage.h"

namespace mimo {
namespace {

std::string WithoutPlaceholder(const std::string& question) {
  return std::string(absl::StripAsciiWhitespace(
      absl::StrReplaceAll(question, {{std::string(kImagePlaceholder), ""}})));
}

// Every n-th conversation of a split, its questions in turn.
absl::StatusOr<std::vector<ContactCell>> Cells(
    const std::vector<Answer>& answers, int64_t wanted) {
  std::vector<std::vector<const Answer*>> conversations;
  for (const Answer& answer : answers) {
    if (conversations.empty() ||
        conversations.back()[0]->conversation != answer.conversation) {
      conversations.emplace_back();
    }
    conversations.back().push_back(&answer);
  }
  const int64_t count =
      std::min<int64_t>(wanted, static_cast<int64_t>(conversations.size()));
  std::vector<ContactCell> cells;
  for (int64_t i = 0; i < count; ++i) {
    const auto& asked = conversations[i * conversations.size() / count];
    const Answer& answer = *asked[i % asked.size()];
    ContactCell cell{.question = WithoutPlaceholder(answer.turn->question),
                     .answer = answer.text,
                     .wanted = answer.wanted};
    if (!answer.conversation->pictures.empty()) {
      const Picture& picture = answer.conversation->pictures[0];
      if (picture.decoded != nullptr) {
        cell.picture = *picture.decoded;
      } else {
        MIMO_ASSIGN_OR_RETURN(cell.picture, ReadImage(picture.path));
      }
    }
    cells.push_back(std::move(cell));
  }
  return cells;
}

// One row a kind of question.
absl::Status Report(const Corpus& corpus, const Split& split,
                    const SplitAnswers& result, uint64_t seed, bool json) {
  const std::map<std::string, double> exact = ExactByKind(result.answers);
  if (json) {
    std::string line = absl::StrFormat(
        R"({"split": "validation", "name": "%s", "lm_loss": %.17g)", split.name,
        result.lm_loss);
    for (const auto& [kind, share] : exact) {
      absl::StrAppendFormat(&line, R"(, "%s": %.17g)", MetricName(kind), share);
    }
    std::cout << line << "}\n";
    return absl::OkStatus();
  }
  MIMO_ASSIGN_OR_RETURN(const std::vector<Baseline> baselines,
                        ComputeBaselines(corpus.train, split, seed));
  std::cout << absl::StrFormat(
      "\n%s: lm_loss %.4f\n  %-12s %9s %8s %8s %9s %9s\n", split.name,
      result.lm_loss, "question", "asked", "exact", "chance", "majority",
      "nearest");
  for (const Baseline& b : baselines) {
    const auto found = exact.find(b.kind);
    if (found == exact.end()) continue;
    const int64_t asked =
        std::count_if(result.answers.begin(), result.answers.end(),
                      [&](const Answer& a) { return a.turn->kind == b.kind; });
    std::cout << absl::StrFormat(
        "  %-12s %9d %7.1f%% %7.1f%% %8.1f%% %8.1f%%\n",
        b.kind.empty() ? "answer" : b.kind, asked, 100 * found->second,
        100 * b.chance, 100 * b.majority, 100 * b.nearest);
  }
  return absl::OkStatus();
}

absl::Status EvaluateTensors(const OpenedModel& opened,
                             const std::string& path) {
  MIMO_ASSIGN_OR_RETURN(const MicroBatch batch, ReadTensorBatch(path));
  MIMO_ASSIGN_OR_RETURN(const double loss,
                        LossSum(opened.context(), *opened.model, batch));
  std::cout << absl::StrFormat(
      "{\"split\": \"validation\", \"lm_loss\": %.17g}\n",
      loss / std::max<int64_t>(batch.LabelledTokens(), 1));
  return absl::OkStatus();
}

}  // namespace

absl::Status RunEvaluate(const Words& words, const ModuleRegistry& registry) {
  Args args("evaluate", "loss and task metrics on the validation data");
  args.Flag("config", "F.yaml", "the run's configuration");
  args.Flag("checkpoint", "DIR", "a checkpoint, or a Hugging Face folder");
  args.Flag("split", "NAME", "only this split; may be given several times");
  args.Flag("limit", "N", "the first N conversations of a split (all)");
  args.Flag("contact-sheet", "F.png", "draw pictures, questions and answers");
  args.Flag("cells", "N", "how many of them (24)");
  args.Flag("json", "", "a JSON object a split instead of tables");
  AddComputeFlags(args, "auto");
  args.Positional("a.b=c", "values that win over the file's");
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.PrintsHelp()) return absl::OkStatus();
  MIMO_ASSIGN_OR_RETURN(const std::string path, args.Required("config"));
  MIMO_ASSIGN_OR_RETURN(const std::string checkpoint,
                        args.Required("checkpoint"));
  MIMO_ASSIGN_OR_RETURN(const int64_t limit, args.Int("limit", 0));
  MIMO_ASSIGN_OR_RETURN(const int64_t cells, args.Int("cells", 24));
  if (limit < 0 || cells < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("evaluate: --limit ", limit, " and --cells ", cells,
                     ", wanted 0 or more and 1 or more"));
  }
  MIMO_ASSIGN_OR_RETURN(const ConfigNode root,
                        ReadRunConfig(path, args.positional()));
  MIMO_ASSIGN_OR_RETURN(const RunSections run, ReadSections(root));
  const DataConfig& config = run.data;
  MIMO_ASSIGN_OR_RETURN(const Compute compute, ReadCompute(args, "auto"));
  MIMO_ASSIGN_OR_RETURN(const OpenedModel opened,
                        OpenModel(checkpoint, compute, registry));
  if (config.type == DataType::kTensors) {
    return EvaluateTensors(opened, config.path);
  }
  if (config.type == DataType::kMock) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": data.type: mock, wanted data with a validation split"));
  }
  const std::string tokenizer = opened.folder + "/tokenizer.model";
  MIMO_ASSIGN_OR_RETURN(const RunData data,
                        OpenData(config, opened.section.model,
                                 Exists(tokenizer) ? tokenizer : ""));
  const std::vector<std::string> only = args.Strings("split");
  std::vector<std::string> names;
  for (const Split& split : data.corpus.validation) names.push_back(split.name);
  if (names.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path,
                     ": data: no validation split, wanted validation_path or "
                     "validation_fraction"));
  }
  for (const std::string& name : only) {
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("evaluate: --split: \"", name, "\", wanted one of ",
                       absl::StrJoin(names, ", ")));
    }
  }
  std::vector<ContactCell> sheet;
  for (const Split& split : data.corpus.validation) {
    if (!only.empty() &&
        std::find(only.begin(), only.end(), split.name) == only.end()) {
      continue;
    }
    MIMO_ASSIGN_OR_RETURN(const SplitAnswers result,
                          AskSplit(opened.context(), *opened.model, data, split,
                                   run.train.seed, limit));
    MIMO_RETURN_IF_ERROR(
        Report(data.corpus, split, result, run.train.seed, args.Has("json")));
    if (args.Has("contact-sheet") && sheet.empty()) {
      MIMO_ASSIGN_OR_RETURN(sheet, Cells(result.answers, cells));
      MIMO_RETURN_IF_ERROR(WritePng(
          args.String("contact-sheet"),
          DrawContactSheet(absl::StrCat(split.name, ", never seen in training"),
                           sheet)));
    }
  }
  return absl::OkStatus();
}

}  // namespace mimo
