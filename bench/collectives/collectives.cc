// Times every operation of a communicator, and bridges, on the CPU; prints
// Markdown tables. docs/perf/collectives.md says what the columns are.
//
//   collectives --backend inproc --ranks 4
//
// `inproc`: the ranks are threads of this process; `gloo`: processes that it
// starts.
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "bench/collectives/bridges.h"
#include "bench/collectives/measure.h"
#include "cli/args.h"
#include "comm/gloo/gloo_communicator.h"
#include "comm/inproc/inproc.h"
#include "comm/testing/rank_processes.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// The command line, for the processes of ranks.
constexpr char kWords[] = "MIMO_COLLECTIVES_WORDS";

absl::StatusOr<DType> ParseDType(const std::string& name) {
  for (const DType dtype :
       {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16,
        DType::kInt32, DType::kInt64, DType::kUInt8})
    if (Name(dtype) == name) return dtype;
  return absl::InvalidArgumentError(
      absl::StrCat("--dtype: found ", name, ", wanted float32, bfloat16, .."));
}

Args DeclareArgs() {
  Args args("collectives", "times the operations of a communicator");
  args.Flag("backend", "NAME", "inproc or gloo (inproc)");
  args.Flag("ranks", "N", "threads or processes (2)");
  args.Flag("dtype", "NAME", "of the elements (float32)");
  args.Flag("bytes", "N", "a size, several times (4 KiB, 256 KiB, 16 MiB)");
  args.Flag("seconds", "S", "about what a line takes (0.2)");
  return args;
}

absl::StatusOr<TableOptions> OptionsOf(const Args& args) {
  TableOptions options;
  MIMO_ASSIGN_OR_RETURN(options.dtype,
                        ParseDType(args.String("dtype", "float32")));
  MIMO_ASSIGN_OR_RETURN(options.seconds, args.Double("seconds", 0.2));
  for (const std::string& text : args.Strings("bytes")) {
    int64_t bytes = 0;
    if (!absl::SimpleAtoi(text, &bytes) || bytes < 1)
      return absl::InvalidArgumentError(
          absl::StrCat("--bytes: found ", text, ", wanted a positive number"));
    options.bytes.push_back(bytes);
  }
  if (options.bytes.empty()) options.bytes = {4 << 10, 256 << 10, 16 << 20};
  return options;
}

absl::Status PrintTables(Communicator& world, const std::string& backend,
                         const TableOptions& options) {
  MIMO_RETURN_IF_ERROR(
      PrintTable(world, Stream(), options, {{backend, OperationsOf(world)}}));
  return world.size() % 2 == 0 ? PrintBridgeTable(world, Stream(), options)
                               : absl::OkStatus();
}

absl::Status GlooRank(const Job& job, Store& store) {
  Args args = DeclareArgs();
  MIMO_RETURN_IF_ERROR(
      args.Parse(absl::StrSplit(std::getenv(kWords), '\n', absl::SkipEmpty())));
  MIMO_ASSIGN_OR_RETURN(const TableOptions options, OptionsOf(args));
  MIMO_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> world,
                        ConnectGloo(job, store));
  return PrintTables(*world, "gloo", options);
}

absl::Status Run(const std::vector<std::string>& words) {
  Args args = DeclareArgs();
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.PrintsHelp()) return absl::OkStatus();
  MIMO_ASSIGN_OR_RETURN(const TableOptions options, OptionsOf(args));
  MIMO_ASSIGN_OR_RETURN(const int64_t ranks, args.Int("ranks", 2));
  if (ranks < 1)
    return absl::InvalidArgumentError(
        absl::StrCat("--ranks: found ", ranks, ", wanted at least 1"));
  const std::string backend = args.String("backend", "inproc");
  if (backend == "inproc") {
    for (const absl::Status& status : RunRanks(ranks, [&](Communicator& world) {
           return PrintTables(world, backend, options);
         }))
      MIMO_RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }
  if (backend != "gloo")
    return absl::InvalidArgumentError(
        absl::StrCat("--backend: found ", backend, ", wanted inproc or gloo"));
  RankProcesses processes(
      ranks, "gloo", {absl::StrCat(kWords, "=", absl::StrJoin(words, "\n"))});
  const absl::Status status = processes.Wait(absl::Minutes(10));
  std::cout << processes.Output(0);
  return status;
}

}  // namespace
}  // namespace mimo

int main(int argc, char** argv) {
  mimo::RunRankIfAsked({{"gloo", mimo::GlooRank}});
  const absl::Status status = mimo::Run({argv + 1, argv + argc});
  if (!status.ok()) std::cerr << "collectives: " << status.message() << "\n";
  return status.ok() ? 0 : 1;
}
