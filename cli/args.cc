#include "cli/args.h"

#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "mimo/config/nearest.h"

namespace mimo {

void Args::Flag(std::string name, std::string value, std::string help) {
  flags_.push_back({std::move(name), std::move(value), std::move(help)});
}

void Args::Positional(std::string name, std::string help) {
  positional_declared_ = {std::move(name), "", std::move(help)};
}

const Args::Declared* Args::Find(absl::string_view name) const {
  for (const Declared& flag : flags_) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

absl::Status Args::Parse(const std::vector<std::string>& words) {
  for (size_t i = 0; i < words.size(); ++i) {
    absl::string_view word = words[i];
    if (word == "--help" || word == "-h") {
      help_ = true;
      continue;
    }
    if (word.substr(0, 2) != "--") {
      if (positional_declared_.name.empty()) {
        return absl::InvalidArgumentError(absl::StrCat(
            command_, ": unexpected argument \"", word, "\", wanted flags"));
      }
      positional_.emplace_back(word);
      continue;
    }
    word.remove_prefix(2);
    const size_t equals = word.find('=');
    const std::string name(word.substr(0, equals));
    const Declared* flag = Find(name);
    if (flag == nullptr) {
      std::vector<std::string> known;
      for (const Declared& f : flags_) known.push_back(f.name);
      return absl::InvalidArgumentError(
          absl::StrCat(command_, ": unknown flag --", name, ", did you mean --",
                       Nearest(name, known), "?"));
    }
    std::vector<std::string>& values = given_[name];
    if (flag->value.empty()) {
      if (equals != absl::string_view::npos) {
        return absl::InvalidArgumentError(
            absl::StrCat(command_, ": --", name, " takes no value"));
      }
      values.push_back("true");
    } else if (equals != absl::string_view::npos) {
      values.emplace_back(word.substr(equals + 1));
    } else if (i + 1 < words.size() && !absl::StartsWith(words[i + 1], "--")) {
      values.push_back(words[++i]);
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          command_, ": --", name, ": no value, wanted ", flag->value));
    }
  }
  return absl::OkStatus();
}

bool Args::PrintsHelp() const {
  if (!help_) return false;
  std::string usage = absl::StrCat("mimo ", command_, ": ", summary_,
                                   "\n\nusage: mimo ", command_, " [flags]");
  if (!positional_declared_.name.empty()) {
    absl::StrAppend(&usage, " [", positional_declared_.name, " ...]\n\n  ",
                    positional_declared_.name, "  ", positional_declared_.help);
  }
  absl::StrAppend(&usage, "\n\n");
  for (const Declared& flag : flags_) {
    absl::StrAppendFormat(&usage, "  %-28s %s\n",
                          absl::StrCat("--", flag.name, " ", flag.value),
                          flag.help);
  }
  std::cout << usage;
  return true;
}

bool Args::Has(absl::string_view flag) const { return given_.contains(flag); }

std::string Args::String(absl::string_view flag,
                         absl::string_view otherwise) const {
  const auto found = given_.find(flag);
  return found == given_.end() ? std::string(otherwise) : found->second.back();
}

std::vector<std::string> Args::Strings(absl::string_view flag) const {
  const auto found = given_.find(flag);
  return found == given_.end() ? std::vector<std::string>() : found->second;
}

absl::StatusOr<std::string> Args::Required(absl::string_view flag) const {
  if (Has(flag)) return String(flag);
  return absl::InvalidArgumentError(absl::StrCat(command_, ": --", flag,
                                                 " is missing, wanted --", flag,
                                                 " ", Find(flag)->value));
}

absl::StatusOr<int64_t> Args::Int(absl::string_view flag,
                                  int64_t otherwise) const {
  if (!Has(flag)) return otherwise;
  int64_t value;
  if (absl::SimpleAtoi(String(flag), &value)) return value;
  return absl::InvalidArgumentError(absl::StrCat(
      command_, ": --", flag, ": \"", String(flag), "\", wanted an integer"));
}

absl::StatusOr<double> Args::Double(absl::string_view flag,
                                    double otherwise) const {
  if (!Has(flag)) return otherwise;
  double value;
  if (absl::SimpleAtod(String(flag), &value)) return value;
  return absl::InvalidArgumentError(absl::StrCat(
      command_, ": --", flag, ": \"", String(flag), "\", wanted a number"));
}

}  // namespace mimo
