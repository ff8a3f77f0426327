#include "comm/rendezvous/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/rendezvous/socket.h"
#include "comm/rendezvous/store_protocol.h"
#include "kernels/base/status_macros.h"

extern char** environ;

namespace mimo {
namespace {

constexpr int kForwarded[] = {SIGINT,  SIGTERM, SIGHUP,
                              SIGQUIT, SIGUSR1, SIGUSR2};
constexpr size_t kLongestLine = 1 << 20;  // then it is broken

using Environment = std::map<std::string, std::string>;

// This process's own.
Environment ReadEnvironment() {
  Environment environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    const size_t name = text.find('=');
    if (name != std::string::npos) {
      environment[text.substr(0, name)] = text.substr(name + 1);
    }
  }
  return environment;
}

// The pointers that execve wants into `words`.
std::vector<char*> Pointers(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

// One output of a rank: what it has written of a line so far.
struct Output {
  Socket pipe;
  int to = 1;  // our stdout or stderr
  std::string line;
  bool open = true;
};

struct Process {
  int rank;
  pid_t pid = 0;
  bool ended = false;
  Output outputs[2];
};

// While it lives, the signals that a launcher handles wait in fd().
class SignalQueue {
 public:
  SignalQueue() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    for (const int signal : kForwarded) sigaddset(&set, signal);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, &before_), 0);
    socket_ = Socket(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    CHECK_GE(socket_.fd(), 0);
  }
  ~SignalQueue() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  int fd() const { return socket_.fd(); }
  const sigset_t& before() const { return before_; }
  // 0 when there is none.
  int Next() {
    signalfd_siginfo info;
    const ssize_t got = read(socket_.fd(), &info, sizeof(info));
    return got == sizeof(info) ? static_cast<int>(info.ssi_signo) : 0;
  }

 private:
  Socket socket_;
  sigset_t before_;
};

class Launcher {
 public:
  explicit Launcher(const LaunchOptions& options) : options_(options) {}

  absl::Status Run() {
    MIMO_ASSIGN_OR_RETURN(Environment environment, MakeEnvironment());
    const int world = options_.nodes * options_.processes;
    environment["WORLD_SIZE"] = absl::StrCat(world);
    environment["LOCAL_WORLD_SIZE"] = absl::StrCat(options_.processes);
    processes_.resize(options_.processes);
    for (int local = 0; local < options_.processes; ++local) {
      Process& process = processes_[local];
      process.rank = options_.node_rank * options_.processes + local;
      environment["RANK"] = absl::StrCat(process.rank);
      environment["LOCAL_RANK"] = absl::StrCat(local);
      if (absl::Status started = Start(process, environment); !started.ok()) {
        Fail(std::move(started));
        break;
      }
    }
    while (RunningOnes()) Wait();
    // What a process that a rank left behind might still write is not waited
    // for.
    for (Process& process : processes_) {
      for (Output& output : process.outputs) {
        while (output.open && Pass(process.rank, output)) {
        }
        if (!output.line.empty()) PrintLine(process.rank, output);
      }
    }
    return failure_.ok() ? after_another_ : failure_;
  }

 private:
  // What all ranks of this machine share.
  absl::StatusOr<Environment> MakeEnvironment() {
    Environment environment = ReadEnvironment();
    environment.erase("TORCHELASTIC_RUN_ID");  // we are no torchrun
    if (options_.nodes == 1) {
      // The socket keeps the port for rank 0 without listening on it.
      MIMO_ASSIGN_OR_RETURN(port_, ReservePort("127.0.0.1"));
      environment["MASTER_ADDR"] = "127.0.0.1";
      environment["MASTER_PORT"] = absl::StrCat(LocalPort(port_));
      environment["MIMO_STORE_KEY"] = absl::BytesToHexString(FreshNonce());
      environment.erase("MIMO_STORE_KEY_FILE");
    } else {
      environment["MASTER_ADDR"] = options_.master_address;
      environment["MASTER_PORT"] = absl::StrCat(options_.master_port);
    }
    cpu_set_t cpus;
    CHECK_EQ(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
    environment.emplace(
        "MIMO_THREADS",
        absl::StrCat(std::max(1, CPU_COUNT(&cpus) / options_.processes)));
    return environment;
  }

  absl::Status Start(Process& process, const Environment& environment) {
    std::vector<std::string> arguments = {"mimo"}, variables;
    arguments.insert(arguments.end(), options_.arguments.begin(),
                     options_.arguments.end());
    for (const auto& [name, value] : environment) {
      variables.push_back(absl::StrCat(name, "=", value));
    }
    std::vector<char*> argv = Pointers(arguments), envp = Pointers(variables);
    Socket writers[2];
    for (int i = 0; i < 2; ++i) {
      int ends[2];
      if (pipe2(ends, O_CLOEXEC) != 0) return CannotStart(process.rank);
      process.outputs[i] = {.pipe = Socket(ends[0]), .to = i + 1};
      writers[i] = Socket(ends[1]);
      CHECK_EQ(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
    }
    const pid_t launcher = getpid();
    const pid_t pid = fork();
    if (pid < 0) return CannotStart(process.rank);
    if (pid == 0) {
      // Only calls that are safe after a fork of a process with threads.
      setpgid(0, 0);
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != launcher) _exit(1);  // it was killed just now
      pthread_sigmask(SIG_SETMASK, &signals_.before(), nullptr);
      const int nothing = open("/dev/null", O_RDONLY);
      dup2(nothing, 0);
      dup2(writers[0].fd(), 1);
      dup2(writers[1].fd(), 2);
      execve(options_.program.c_str(), argv.data(), envp.data());
      constexpr char kWhat[] = "mimo: launch: cannot run the program\n";
      [[maybe_unused]] const ssize_t said = write(2, kWhat, sizeof(kWhat) - 1);
      _exit(1);
    }
    setpgid(pid, pid);  // whichever of the two comes first
    process.pid = pid;
    return absl::OkStatus();
  }

  static absl::Status CannotStart(int rank) {
    return absl::InternalError(absl::StrCat(
        "rank ", rank, " cannot be started: ", std::strerror(errno)));
  }

  bool RunningOnes() const {
    return std::any_of(processes_.begin(), processes_.end(),
                       [](const Process& p) { return p.pid != 0 && !p.ended; });
  }

  void SendAll(int signal) {
    for (const Process& process : processes_) {
      if (process.pid != 0 && !process.ended) kill(-process.pid, signal);
    }
  }

  // Waits for output, a signal, or the end of the grace.
  void Wait() {
    std::vector<pollfd> polled = {{signals_.fd(), POLLIN, 0}};
    std::vector<std::pair<int, Output*>> of = {{}};
    for (Process& process : processes_) {
      for (Output& output : process.outputs) {
        if (!output.open || output.pipe.fd() < 0) continue;
        polled.push_back({output.pipe.fd(), POLLIN, 0});
        of.emplace_back(process.rank, &output);
      }
    }
    int timeout = -1;
    if (kill_at_ != absl::InfiniteFuture()) {
      timeout = std::max<int64_t>(
          0, absl::ToInt64Milliseconds(kill_at_ - absl::Now()) + 1);
    }
    poll(polled.data(), polled.size(), timeout);
    for (size_t i = 1; i < polled.size(); ++i) {
      if (polled[i].revents != 0) Pass(of[i].first, *of[i].second);
    }
    while (const int signal = signals_.Next()) {
      if (signal != SIGCHLD) SendAll(signal);
    }
    Reap();
    if (absl::Now() >= kill_at_) {
      for (const Process& process : processes_) {
        if (!failure_.ok()) break;
        if (process.ended) continue;
        failure_ = absl::InternalError(absl::StrCat(
            "rank ", process.rank, " hangs: killed ",
            absl::FormatDuration(options_.grace), " after the others"));
      }
      SendAll(SIGKILL);
      kill_at_ = absl::InfiniteFuture();
    }
  }

  // Takes note of the ranks that have ended.
  void Reap() {
    absl::Status by_exit, by_signal;
    for (Process& process : processes_) {
      siginfo_t end = {};
      if (process.pid == 0 || process.ended ||
          waitid(P_PID, process.pid, &end, WEXITED | WNOHANG | WNOWAIT) != 0 ||
          end.si_pid == 0) {
        continue;
      }
      // What it started and left behind, while the group is still its own.
      kill(-process.pid, SIGKILL);
      int status;
      CHECK_EQ(waitpid(process.pid, &status, 0), process.pid);
      process.ended = true;
      if (WIFSIGNALED(status)) {
        by_signal.Update(absl::InternalError(absl::StrCat(
            "rank ", process.rank, " ended by signal ", WTERMSIG(status), " (",
            strsignal(WTERMSIG(status)), ")")));
      } else if (const int code = WEXITSTATUS(status);
                 code == kFailedAfterAnother) {
        kill_at_ = std::min(kill_at_, absl::Now() + options_.grace);
        after_another_ = absl::InternalError(
            "its ranks ended because another failed or did not come: a line "
            "of that one's, or theirs, names it");
      } else if (code != 0) {
        const std::string what =
            absl::StrCat("rank ", process.rank, " ended with exit code ", code);
        by_exit.Update(code == 2 ? absl::InvalidArgumentError(what)
                                 : absl::InternalError(what));
      }
    }
    // Of several at once, one that was killed is the cause of the others.
    if (!by_signal.ok()) Fail(std::move(by_signal));
    if (!by_exit.ok()) Fail(std::move(by_exit));
  }

  // The first failure ends the others.
  void Fail(absl::Status why) {
    if (!failure_.ok()) return;
    failure_ = std::move(why);
    SendAll(SIGTERM);
    kill_at_ = absl::Now() + options_.grace;
  }

  // Prints the whole lines of what can be read now; false if that was nothing.
  bool Pass(int rank, Output& output) {
    char chunk[1 << 14];
    const ssize_t got = read(output.pipe.fd(), chunk, sizeof(chunk));
    if (got <= 0) {
      output.open = got < 0 && (errno == EAGAIN || errno == EINTR);
      return false;
    }
    for (const char* at = chunk; at < chunk + got;) {
      const char* newline =
          std::find(at, static_cast<const char*>(chunk) + got, '\n');
      output.line.append(at, newline);
      at = newline;
      if (at < chunk + got || output.line.size() >= kLongestLine) {
        PrintLine(rank, output);
      }
      if (at < chunk + got) ++at;
    }
    return true;
  }

  static void PrintLine(int rank, Output& output) {
    const std::string line = absl::StrCat("[", rank, "] ", output.line, "\n");
    for (size_t done = 0; done < line.size();) {
      const ssize_t wrote =
          write(output.to, line.data() + done, line.size() - done);
      if (wrote < 0 && errno != EINTR) break;  // nobody reads it
      if (wrote > 0) done += wrote;
    }
    output.line.clear();
  }

  const LaunchOptions& options_;
  SignalQueue signals_;
  Socket port_;
  std::vector<Process> processes_;
  absl::Status failure_, after_another_;
  absl::Time kill_at_ = absl::InfiniteFuture();
};

}  // namespace

absl::Status Launch(const LaunchOptions& options) {
  return Launcher(options).Run();
}

}  // namespace mimo
