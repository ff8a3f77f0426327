#include "comm/rendezvous/launcher.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

struct Launched {
  std::string out, err;
  std::string status;  // absl::Status::ToString
};

// A launcher in a process of its own, whose ranks run a shell script.
class Running {
 public:
  explicit Running(const std::string& script, LaunchOptions options = {}) {
    options.program = "/bin/sh";
    options.arguments = {"-c", script};
    Start(options);
  }
  explicit Running(const LaunchOptions& options) { Start(options); }
  ~Running() {
    close(alive_);
    if (pid_ > 0) Wait();
  }

  pid_t pid() const { return pid_; }
  // Waits for `text` on its stdout.
  void Await(const std::string& text) {
    char c;
    while (!absl::StrContains(result_.out, text)) {
      ASSERT_EQ(read(out_, &c, 1), 1) << result_.out;
      result_.out += c;
    }
  }
  Launched Wait() {
    ReadToEnd(out_, result_.out);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
    const auto text = [this](const std::string& name) {
      std::ifstream file(File(name));
      return std::string((std::istreambuf_iterator<char>(file)), {});
    };
    result_.err = text("err");
    result_.status = text("status");
    return result_;
  }
  // Waits until the launcher and all its ranks have ended, however they did:
  // each holds an end of a pipe.
  void AwaitNobody() {
    std::string nothing;
    ReadToEnd(alive_, nothing);
  }

 private:
  void Start(const LaunchOptions& options) {
    int out[2], alive[2];
    ASSERT_EQ(pipe(out), 0);
    ASSERT_EQ(pipe(alive), 0);
    pid_ = fork();
    if (pid_ == 0) {
      close(out[0]);
      close(alive[0]);
      dup2(out[1], 1);
      close(out[1]);
      if (freopen(File("err").c_str(), "w", stderr) == nullptr) _exit(1);
      std::ofstream(File("status")) << Launch(options).ToString();
      _exit(0);
    }
    close(out[1]);
    close(alive[1]);
    out_ = out[0];
    alive_ = alive[0];
  }
  static std::string File(const std::string& name) {
    return absl::StrCat(testing::TempDir(), "/launcher_", name);
  }
  static void ReadToEnd(int fd, std::string& text) {
    char chunk[4096];
    ssize_t got;
    while ((got = read(fd, chunk, sizeof(chunk))) > 0) text.append(chunk, got);
  }

  pid_t pid_;
  int out_, alive_;
  Launched result_;
};

std::multiset<std::string> Lines(const std::string& text) {
  const std::vector<std::string> lines =
      absl::StrSplit(text, '\n', absl::SkipEmpty());
  return {lines.begin(), lines.end()};
}

TEST(Launcher, TellsRanksWhoTheyAre) {
  const Launched ran =
      Running(
          "echo $RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE "
          "$MASTER_ADDR ${TORCHELASTIC_RUN_ID-none}",
          {.processes = 3})
          .Wait();
  EXPECT_EQ(ran.status, "OK");
  EXPECT_EQ(ran.err, "");
  EXPECT_EQ(Lines(ran.out),
            (std::multiset<std::string>{"[0] 0/3 0/3 127.0.0.1 none",
                                        "[1] 1/3 1/3 127.0.0.1 none",
                                        "[2] 2/3 2/3 127.0.0.1 none"}));
}

TEST(Launcher, OneSecretAndPortForAllRanksOfAJob) {
  std::set<std::string> seen;
  for (int job = 0; job < 2; ++job) {
    const Launched ran =
        Running(
            "echo $MIMO_STORE_KEY $MASTER_PORT; tr '\\0' ' ' < "
            "/proc/$$/cmdline >&2; echo >&2",
            {.processes = 2})
            .Wait();
    const std::vector<std::string> lines =
        absl::StrSplit(ran.out, '\n', absl::SkipEmpty());
    ASSERT_EQ(lines.size(), 2);
    EXPECT_EQ(lines[0].substr(4), lines[1].substr(4));
    const std::vector<std::string> words =
        absl::StrSplit(lines[0].substr(4), ' ');
    ASSERT_EQ(words.size(), 2);
    EXPECT_EQ(words[0].size(), 64);
    int port;
    EXPECT_TRUE(absl::SimpleAtoi(words[1], &port) && port > 0);
    EXPECT_FALSE(absl::StrContains(ran.err, words[0]));  // not in argv
    seen.insert(words[0]);
  }
  EXPECT_EQ(seen.size(), 2);
}

TEST(Launcher, SeveralMachines) {
  setenv("MIMO_STORE_KEY", "shared", 1);
  const Launched ran = Running(
                           "echo $RANK/$WORLD_SIZE $LOCAL_RANK "
                           "$MASTER_ADDR:$MASTER_PORT $MIMO_STORE_KEY",
                           {.processes = 2,
                            .nodes = 3,
                            .node_rank = 1,
                            .master_address = "n0",
                            .master_port = 29500})
                           .Wait();
  unsetenv("MIMO_STORE_KEY");
  EXPECT_EQ(Lines(ran.out),
            (std::multiset<std::string>{"[2] 2/6 0 n0:29500 shared",
                                        "[3] 3/6 1 n0:29500 shared"}));
}

TEST(Launcher, LinesStayWhole) {
  const std::string tail(100, 'x');
  const Launched ran =
      Running("i=0; while [ $i -lt 300 ]; do printf 'o%s ' $i; echo " + tail +
                  "; printf 'e%s ' $i >&2; echo " + tail +
                  " >&2; i=$((i+1)); done; printf last",
              {.processes = 4})
          .Wait();
  std::multiset<std::string> out, err;
  for (int rank = 0; rank < 4; ++rank) {
    for (int i = 0; i < 300; ++i) {
      out.insert(absl::StrCat("[", rank, "] o", i, " ", tail));
      err.insert(absl::StrCat("[", rank, "] e", i, " ", tail));
    }
    out.insert(absl::StrCat("[", rank, "] last"));
  }
  EXPECT_EQ(ran.status, "OK");
  EXPECT_TRUE(Lines(ran.out) == out) << ran.out;
  EXPECT_TRUE(Lines(ran.err) == err) << ran.err;
}

TEST(Launcher, NamesTheFirstFailureAndEndsTheOthers) {
  const struct {
    std::string script, status;
  } kCases[] = {{"kill -9 $$", "INTERNAL: rank 2 ended by signal 9 (Killed)"},
                {"exit 4", "INTERNAL: rank 2 ended with exit code 4"},
                {"exit 2", "INVALID_ARGUMENT: rank 2 ended with exit code 2"}};
  for (const auto& c : kCases) {
    Running running("if [ $RANK = 2 ]; then " + c.script + "; fi; sleep 1000",
                    {.processes = 4});
    EXPECT_EQ(running.Wait().status, c.status);
    running.AwaitNobody();
  }
}

TEST(Launcher, NamesWhoFailedFirstNotWhoLeftFirst) {
  Running running(
      "trap '' TERM; if [ $RANK != 2 ]; then exit 3; fi; "
      "sleep 0.2; exit 2",
      {.processes = 4});
  EXPECT_EQ(running.Wait().status,
            "INVALID_ARGUMENT: rank 2 ended with exit code 2");
}

TEST(Launcher, NamesWhoHangs) {
  Running running("if [ $RANK != 1 ]; then exit 3; fi; exec sleep 1000",
                  {.processes = 3, .grace = absl::Milliseconds(50)});
  EXPECT_EQ(running.Wait().status,
            "INTERNAL: rank 1 hangs: killed 50ms after the others");
  running.AwaitNobody();
}

TEST(Launcher, AnotherMachinesRankFailed) {
  Running running("exit 3", {.processes = 1});
  EXPECT_EQ(running.Wait().status,
            "INTERNAL: its ranks ended because another failed or did not come: "
            "a line of that one's, or theirs, names it");
}

TEST(Launcher, KillsWhoDoesNotListen) {
  const std::string fifo = testing::TempDir() + "/launcher_fifo";
  unlink(fifo.c_str());
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  Running running("trap '' TERM; if [ $RANK = 1 ]; then read x < " + fifo +
                      "; exit 5; fi; echo deaf > " + fifo +
                      "; while :; do sleep 1000; done",
                  {.processes = 2, .grace = absl::Milliseconds(50)});
  EXPECT_EQ(running.Wait().status, "INTERNAL: rank 1 ended with exit code 5");
  running.AwaitNobody();
}

TEST(Launcher, ForwardsSignals) {
  const struct {
    int signal;
    std::string name;
  } kCases[] = {{SIGINT, "INT"},   {SIGTERM, "TERM"}, {SIGHUP, "HUP"},
                {SIGQUIT, "QUIT"}, {SIGUSR1, "USR1"}, {SIGUSR2, "USR2"}};
  for (const auto& c : kCases) {
    // A shell heeds a signal between two commands.
    Running running("trap 'echo got; exit 0' " + c.name +
                        "; echo up; while :; do sleep 0.01; done",
                    {.processes = 2});
    running.Await("[0] up");
    running.Await("[1] up");
    ASSERT_EQ(kill(running.pid(), c.signal), 0);
    const Launched ran = running.Wait();
    EXPECT_EQ(ran.status, "OK");
    EXPECT_TRUE(absl::StrContains(ran.out, "[0] got")) << ran.out;
    EXPECT_TRUE(absl::StrContains(ran.out, "[1] got")) << ran.out;
    running.AwaitNobody();
  }
}

TEST(Launcher, NoRankOutlivesIt) {
  Running running("echo up; exec sleep 1000", {.processes = 3});
  for (const char* rank : {"[0] up", "[1] up", "[2] up"}) running.Await(rank);
  ASSERT_EQ(kill(running.pid(), SIGKILL), 0);
  running.AwaitNobody();
}

TEST(Launcher, WhatARankLeavesBehindEndsWithIt) {
  Running running("sleep 1000 & echo up", {.processes = 2});
  EXPECT_EQ(running.Wait().status, "OK");
  running.AwaitNobody();
}

LaunchOptions RankProgram(const std::string& what, int processes) {
  return {.program = "comm/rendezvous/rank_program",
          .arguments = {what},
          .processes = processes,
          .grace = absl::Seconds(60)};
}

TEST(Launcher, ItsRanksMeet) {
  const Launched ran = Running(RankProgram("leave", 4)).Wait();
  EXPECT_EQ(ran.status, "OK") << ran.err;
  EXPECT_EQ(ran.err, "");
  EXPECT_EQ(Lines(ran.out), (std::multiset<std::string>{
                                "[0] met 3 others", "[1] met 3 others",
                                "[2] met 3 others", "[3] met 3 others"}));
}

TEST(Launcher, ItsRanksLearnOfAnothersEnd) {
  const Launched ran = Running(RankProgram("fail", 3)).Wait();
  EXPECT_EQ(ran.status, "INTERNAL: rank 1 ended by signal 9 (Killed)");
  EXPECT_EQ(Lines(ran.out),
            (std::multiset<std::string>{
                "[0] met 2 others", "[1] met 2 others", "[2] met 2 others",
                "[0] rank 1's process ended", "[2] rank 1's process ended"}));
}

TEST(Launcher, AProgramThatIsNotThere) {
  const Launched ran =
      Running(LaunchOptions{.program = "/no/such", .processes = 2}).Wait();
  EXPECT_TRUE(absl::StrContains(ran.status, "ended with exit code 1"))
      << ran.status;
  EXPECT_TRUE(absl::StrContains(ran.err, "cannot run the program")) << ran.err;
}

}  // namespace
}  // namespace mimo
