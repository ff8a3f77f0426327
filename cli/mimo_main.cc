#include "cli/mimo_main.h"

#include <algorithm>
#include <iostream>

#include "absl/base/log_severity.h"
#include "absl/log/globals.h"
#include "absl/log/initialize.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/end.h"
#include "mimo/config/nearest.h"

namespace mimo {
namespace {

constexpr char kVersion[] = "0.1.0";

struct Command {
  const char* name;
  const char* summary;
  absl::Status (*run)(const Words&, const ModuleRegistry&);
};
constexpr Command kCommands[] = {
    {"train", "trains a model from a config", RunTrain},
    {"launch", "starts a command as several ranks of this machine", RunLaunch},
    {"evaluate", "loss and task metrics on the validation data", RunEvaluate},
    {"generate", "writes text about pictures", RunGenerate},
    {"forward", "one forward, and backward, of a checkpoint", RunForward},
    {"convert", "Hugging Face checkpoints in and out", RunConvert},
    {"plan", "parameters and memory of a config, without running it", RunPlan},
};

std::string Usage() {
  std::string usage =
      "mimo trains multi-module models.\n\nusage: mimo COMMAND [flags]\n\n";
  for (const Command& command : kCommands) {
    absl::StrAppendFormat(&usage, "  %-10s %s\n", command.name,
                          command.summary);
  }
  absl::StrAppend(&usage,
                  "\nmimo COMMAND --help says more; mimo --version prints the "
                  "version.\n");
  return usage;
}

absl::Status Run(const std::vector<std::string>& words,
                 const ModuleRegistry& registry) {
  if (words.empty()) {
    return absl::InvalidArgumentError(
        "no command, wanted one (mimo --help lists them)");
  }
  if (words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    std::cout << Usage();
    return absl::OkStatus();
  }
  if (words[0] == "--version") {
    std::cout << "mimo " << kVersion << "\n";
    return absl::OkStatus();
  }
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (words[0] == command.name) {
      return command.run({words.begin() + 1, words.end()}, registry);
    }
    names.push_back(command.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown command \"", words[0], "\", did you mean ",
                   Nearest(words[0], names), "?"));
}

}  // namespace

int MimoMain(const std::vector<std::string>& words,
             const ModuleRegistry& registry) {
  absl::SetStderrThreshold(absl::LogSeverityAtLeast::kWarning);
  static const bool once = (absl::InitializeLog(), true);  // not twice
  static_cast<void>(once);
  return End(Run(words, registry));
}

}  // namespace mimo
