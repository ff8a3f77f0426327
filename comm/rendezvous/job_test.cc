#include "comm/rendezvous/job.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"

extern char** environ;

namespace mimo {
namespace {

using Environment = std::map<std::string, std::string>;

absl::StatusOr<Job> In(const Environment& environment) {
  std::vector<std::string> names;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    names.push_back(std::string(*variable, strcspn(*variable, "=")));
  }
  for (const std::string& name : names) {
    for (const char* prefix :
         {"RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "OMPI_",
          "PMIX_", "SLURM_", "MIMO_STORE_"}) {
      if (absl::StartsWith(name, prefix)) unsetenv(name.c_str());
    }
  }
  for (const auto& [name, value] : environment) {
    setenv(name.c_str(), value.c_str(), 1);
  }
  return JobFromEnvironment();
}

std::string ToString(const absl::StatusOr<Job>& job) {
  if (!job.ok()) return std::string(job.status().message());
  return absl::StrCat(job->rank, "/", job->world_size, " ", job->local_rank,
                      "/", job->local_world_size, " ", job->host, ":",
                      job->port, " ", job->key);
}

// `base` with `changes`; a value "-" takes the variable out.
Environment With(Environment base, const Environment& changes) {
  for (const auto& [name, value] : changes) {
    if (value == "-") {
      base.erase(name);
    } else {
      base[name] = value;
    }
  }
  return base;
}

struct Case {
  Environment changes;
  std::string wanted;  // of a job; or what the error holds
};

void ExpectAll(const Environment& base, const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    SCOPED_TRACE(absl::StrJoin(c.changes, " ", absl::PairFormatter("=")));
    const auto job = In(With(base, c.changes));
    if (job.ok()) {
      EXPECT_EQ(ToString(job), c.wanted);
    } else {
      EXPECT_TRUE(absl::IsInvalidArgument(job.status()));
      EXPECT_TRUE(absl::StrContains(job.status().message(), c.wanted))
          << job.status().message();
    }
  }
}

TEST(Job, OneRankWithoutALauncher) {
  ExpectAll({},
            {{{}, "0/1 0/1 :0 "},
             {{{"MASTER_ADDR", "a"}, {"MASTER_PORT", "x"}}, "0/1 0/1 :0 "},
             {{{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "4"}}, "0/1 0/1 :0 "}});
}

TEST(Job, TorchrunAndMimoLaunch) {
  const Environment base = {{"RANK", "5"},          {"WORLD_SIZE", "8"},
                            {"LOCAL_RANK", "1"},    {"LOCAL_WORLD_SIZE", "4"},
                            {"MASTER_ADDR", "n0"},  {"MASTER_PORT", "29500"},
                            {"MIMO_STORE_KEY", "k"}};
  ExpectAll(
      base,
      {{{}, "5/8 1/4 n0:29500 k"},
       {{{"TORCHELASTIC_RUN_ID", "none"}}, "5/8 1/4 n0:29501 k"},
       {{{"SLURM_PROCID", "2"}, {"SLURM_NTASKS", "3"}}, "5/8 1/4 n0:29500 k"},
       {{{"OMPI_COMM_WORLD_RANK", "2"}}, "5/8 1/4 n0:29500 k"},
       {{{"RANK", "0"},
         {"WORLD_SIZE", "1"},
         {"LOCAL_RANK", "0"},
         {"LOCAL_WORLD_SIZE", "1"},
         {"MASTER_ADDR", "-"},
         {"MASTER_PORT", "-"},
         {"MIMO_STORE_KEY", "-"}},
        "0/1 0/1 :0 "},
       {{{"RANK", "-"}}, "environment: RANK: not set, wanted a number"},
       {{{"WORLD_SIZE", "-"}}, "WORLD_SIZE: not set"},
       {{{"WORLD_SIZE", ""}}, "WORLD_SIZE: not set"},
       {{{"LOCAL_RANK", "-"}}, "LOCAL_RANK: not set"},
       {{{"LOCAL_WORLD_SIZE", "-"}}, "LOCAL_WORLD_SIZE: not set"},
       {{{"MASTER_ADDR", "-"}}, "MASTER_ADDR: not set"},
       {{{"MASTER_PORT", "-"}}, "MASTER_PORT: not set"},
       {{{"RANK", "five"}}, "RANK: \"five\", wanted a number from 0 to 7"},
       {{{"RANK", "8"}}, "RANK: \"8\", wanted a number from 0 to 7"},
       {{{"RANK", "-1"}}, "RANK: \"-1\""},
       {{{"RANK", "5x"}}, "RANK: \"5x\""},
       {{{"RANK", "99999999999"}}, "RANK: \"99999999999\""},
       {{{"WORLD_SIZE", "0"}}, "WORLD_SIZE: \"0\""},
       {{{"LOCAL_WORLD_SIZE", "9"}}, "LOCAL_WORLD_SIZE: \"9\""},
       {{{"LOCAL_RANK", "4"}}, "LOCAL_RANK: \"4\""},
       {{{"LOCAL_WORLD_SIZE", "8"}}, "LOCAL_RANK: 1, wanted rank 5"},
       {{{"MASTER_PORT", "0"}}, "MASTER_PORT: \"0\""},
       {{{"MASTER_PORT", "65536"}}, "MASTER_PORT: \"65536\""},
       {{{"MIMO_STORE_KEY", "-"}}, "MIMO_STORE_KEY_FILE: not set, wanted"}});
}

TEST(Job, Srun) {
  const Environment base = {{"SLURM_PROCID", "9"},
                            {"SLURM_NTASKS", "11"},
                            {"SLURM_LOCALID", "1"},
                            {"SLURM_NODEID", "2"},
                            {"SLURM_STEP_TASKS_PER_NODE", "4(x2),3"},
                            {"SLURM_STEP_NODELIST", "gpu[07-09]"},
                            {"SLURM_JOB_NODELIST", "gpu[01-09]"},
                            {"SLURM_JOB_ID", "1234"},
                            {"SLURM_STEP_ID", "1"},
                            {"MIMO_STORE_KEY", "k"}};
  ExpectAll(
      base,
      // 20000 + (1234 * 64 + 1) % 12000
      {{{}, "9/11 1/3 gpu07:26977 k"},
       {{{"SLURM_STEP_ID", "-"}}, "9/11 1/3 gpu07:26976 k"},
       {{{"SLURM_STEP_NODELIST", "-"}}, "9/11 1/3 gpu01:26977 k"},
       {{{"MASTER_ADDR", "head"}, {"MASTER_PORT", "7000"}},
        "9/11 1/3 head:7000 k"},
       {{{"SLURM_NODEID", "1"}, {"SLURM_LOCALID", "3"}},
        "9/11 3/4 gpu07:26977 k"},
       {{{"SLURM_STEP_TASKS_PER_NODE", "-"},
         {"SLURM_STEP_NODELIST", "solo"},
         {"SLURM_LOCALID", "9"}},
        "9/11 9/11 solo:26977 k"},
       {{{"SLURM_NTASKS", "1"},
         {"SLURM_PROCID", "0"},
         {"SLURM_LOCALID", "0"},
         {"SLURM_NODEID", "0"},
         {"SLURM_STEP_TASKS_PER_NODE", "1"},
         {"MIMO_STORE_KEY", "-"}},
        "0/1 0/1 :0 "},
       {{{"SLURM_NTASKS", "-"}}, "SLURM_NTASKS: not set"},
       {{{"SLURM_LOCALID", "-"}}, "SLURM_LOCALID: not set"},
       {{{"SLURM_LOCALID", "3"}}, "SLURM_LOCALID: \"3\""},
       {{{"SLURM_PROCID", "11"}}, "SLURM_PROCID: \"11\""},
       {{{"SLURM_NODEID", "3"}}, "SLURM_STEP_TASKS_PER_NODE: \"4(x2),3\""},
       {{{"SLURM_STEP_TASKS_PER_NODE", "4(2)"}}, "\"4(2)\""},
       {{{"SLURM_STEP_TASKS_PER_NODE", "4(x"}}, "\"4(x\""},
       {{{"SLURM_STEP_TASKS_PER_NODE", "12(x9)"}}, "12 tasks on this node"},
       {{{"SLURM_STEP_TASKS_PER_NODE", "-"}},
        "SLURM_STEP_TASKS_PER_NODE: not set"},
       {{{"SLURM_STEP_NODELIST", "gpu[07-"}}, "\"gpu[07-\""},
       {{{"SLURM_STEP_NODELIST", "-"}, {"SLURM_JOB_NODELIST", "-"}},
        "MASTER_ADDR: not set"},
       {{{"SLURM_JOB_ID", "-"}}, "MASTER_PORT: not set"},
       {{{"SLURM_JOB_ID", "x"}}, "SLURM_JOB_ID: \"x\""},
       {{{"MIMO_STORE_KEY", "-"}}, "MIMO_STORE_KEY_FILE: not set"}});
}

TEST(Job, Mpirun) {
  const Environment base = {{"OMPI_COMM_WORLD_RANK", "3"},
                            {"OMPI_COMM_WORLD_SIZE", "4"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "3"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                            {"PMIX_NAMESPACE", "@1"},
                            {"MIMO_STORE_KEY", "k"}};
  ExpectAll(base,
            // 20000 + (64 * 257 + 49) % 12000
            {{{}, "3/4 3/4 127.0.0.1:24497 k"},
             // A batch script's own SLURM_* are around it.
             {{{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}},
              "3/4 3/4 127.0.0.1:24497 k"},
             {{{"PMIX_NAMESPACE", "-"}, {"OMPI_MCA_ess_base_jobid", "@1"}},
              "3/4 3/4 127.0.0.1:24497 k"},
             {{{"MASTER_PORT", "7000"}}, "3/4 3/4 127.0.0.1:7000 k"},
             {{{"PMIX_NAMESPACE", "-"}}, "MASTER_ADDR: not set"},
             {{{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
               {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}},
              "MASTER_ADDR: not set, wanted the name of rank 0's machine"},
             {{{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
               {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
               {"MASTER_ADDR", "n0"},
               {"MASTER_PORT", "7000"}},
              "3/4 1/2 n0:7000 k"},
             {{{"OMPI_COMM_WORLD_RANK", "-"}}, "OMPI_COMM_WORLD_RANK: not set"},
             {{{"OMPI_COMM_WORLD_SIZE", "-"}}, "OMPI_COMM_WORLD_SIZE: not set"},
             {{{"OMPI_COMM_WORLD_LOCAL_RANK", "2"}}, "wanted rank 3"},
             {{{"OMPI_COMM_WORLD_LOCAL_SIZE", "5"}},
              "OMPI_COMM_WORLD_LOCAL_SIZE: \"5\""}});
}

TEST(Job, KeyFile) {
  const std::string path = testing::TempDir() + "/key";
  const Environment base = {{"RANK", "0"},
                            {"WORLD_SIZE", "2"},
                            {"LOCAL_RANK", "0"},
                            {"LOCAL_WORLD_SIZE", "2"},
                            {"MASTER_ADDR", "n0"},
                            {"MASTER_PORT", "1"},
                            {"MIMO_STORE_KEY", "not this one"},
                            {"MIMO_STORE_KEY_FILE", path}};
  std::ofstream(path) << "a secret\n";
  EXPECT_EQ(ToString(In(base)), "0/2 0/2 n0:1 a secret");
  std::ofstream(path) << "\n";
  ExpectAll(base, {{{}, path + " is empty, wanted"}});
  ExpectAll(base, {{{{"MIMO_STORE_KEY_FILE", path + "/none"}},
                    path + "/none cannot be read, wanted"}});
}

TEST(FirstSlurmHost, ReadsLists) {
  const Environment cases = {
      {"solo", "solo"},
      {"node[01-04,7],x3", "node01"},
      {"x3,node[01-04,7]", "x3"},
      {"node[7]", "node7"},
      {"node[7,9-12]", "node7"},
      {"rack[1-2]node[003-004].cluster", "rack1node003.cluster"},
      {"a.b-c.example", "a.b-c.example"}};
  for (const auto& [list, host] : cases) {
    const auto found = FirstSlurmHost(list);
    ASSERT_TRUE(found.ok()) << list;
    EXPECT_EQ(*found, host) << list;
  }
  for (const char* list : {"", ",a", "node[", "node[]", "node[1-2", "node]1",
                           "node[,1]", "a b", "node[-3]"}) {
    EXPECT_FALSE(FirstSlurmHost(list).ok()) << list;
  }
}

}  // namespace
}  // namespace mimo
