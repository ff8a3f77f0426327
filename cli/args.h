// Args: the command line of one subcommand.
//
//   Args args("generate", "writes text about pictures");
//   args.Flag("checkpoint", "DIR", "a Hugging Face folder or a checkpoint");
//   MIMO_RETURN_IF_ERROR(args.Parse(words));
//   if (args.PrintsHelp()) return absl::OkStatus();
//   args.String("checkpoint")
//
// `--name value` and `--name=value` are the same, but only the second gives a
// value that begins with `--`; a flag may be given several times (Strings).
// What is not a flag is positional. Errors name the flag and offer the nearest
// known one.
#ifndef MIMO_CLI_ARGS_H_
#define MIMO_CLI_ARGS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mimo {

class Args {
 public:
  Args(std::string command, std::string summary)
      : command_(std::move(command)), summary_(std::move(summary)) {}

  // Declares a flag. An empty `value` means a switch, which takes none.
  void Flag(std::string name, std::string value, std::string help);
  // Declares what positional arguments are; without it they are errors.
  void Positional(std::string name, std::string help);

  absl::Status Parse(const std::vector<std::string>& words);

  // Whether --help was given: then it prints what there is.
  bool PrintsHelp() const;

  bool Has(absl::string_view flag) const;
  // The last value given, or `otherwise`.
  std::string String(absl::string_view flag,
                     absl::string_view otherwise = "") const;
  std::vector<std::string> Strings(absl::string_view flag) const;
  absl::StatusOr<std::string> Required(absl::string_view flag) const;
  absl::StatusOr<int64_t> Int(absl::string_view flag, int64_t otherwise) const;
  absl::StatusOr<double> Double(absl::string_view flag, double otherwise) const;
  const std::vector<std::string>& positional() const { return positional_; }

 private:
  struct Declared {
    std::string name, value, help;
  };
  const Declared* Find(absl::string_view name) const;

  std::string command_, summary_;
  std::vector<Declared> flags_;
  Declared positional_declared_;
  bool help_ = false;
  std::map<std::string, std::vector<std::string>, std::less<>> given_;
  std::vector<std::string> positional_;
};

}  // namespace mimo

#endif  // MIMO_CLI_ARGS_H_
