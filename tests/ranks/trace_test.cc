// `mimo train --trace`: what all ranks do is there, in order, and takes the
// time that the schedule says.
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/clip/clip_vit.h"
#include "models/gpt/gpt.h"
#include "tests/ranks/layout.h"
#include "tests/ranks/traced.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/tiny_run.h"

namespace mimo {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::MatchesRegex;
using ::testing::Pair;

std::vector<std::string> RankNames(const std::string& path) {
  std::vector<std::string> names;
  for (const json& event : EventsOf(path))
    if (event["name"] == "process_name") names.push_back(event["args"]["name"]);
  return names;
}

constexpr double kRounding = 0.01;  // of the times, in microseconds

// Forwards and backwards, each once, in order, and transfers that their ranks
// make together; ranges of a rank nest.
void CheckRanks(const std::vector<std::vector<json>>& ranks, int iterations,
                int micro_batches) {
  std::map<std::string, std::vector<json>> transfers;
  for (const std::vector<json>& ranges : ranks) {
    // iteration, module, stage, micro-batch -> when its forward ended
    std::map<std::tuple<int, std::string, int, int>, double> forwards;
    std::set<std::tuple<int, std::string, int, int>> backwards;
    std::set<std::pair<std::string, int>> stages;
    std::vector<json> open;
    for (const json& range : ranges) {
      while (!open.empty() && End(open.back()) <= Begin(range) + kRounding)
        open.pop_back();
      if (!open.empty()) {
        EXPECT_LE(End(range), End(open.back()) + kRounding) << range;
      }
      open.push_back(range);
      const json& args = range["args"];
      const std::string name = range["name"];
      EXPECT_GE(range["dur"], 0) << range;
      EXPECT_EQ(name.find('.'), std::string::npos) << "a layer's: " << range;
      if (name == "transfer") transfers[args.dump()].push_back(range);
      if (name == "idle") {
        ASSERT_GE(open.size(), 2u);
        EXPECT_TRUE(open[open.size() - 2]["args"].contains("ranks")) << range;
      }
      if (name != "forward" && name != "backward") continue;
      EXPECT_EQ(open[0]["name"],
                absl::StrCat("iteration ", args["iteration"].get<int>()));
      const std::tuple at(
          args["iteration"].get<int>(), args["module"].get<std::string>(),
          args["stage"].get<int>(), args["micro_batch"].get<int>());
      stages.emplace(std::get<1>(at), std::get<2>(at));
      if (name == "forward") {
        EXPECT_TRUE(forwards.emplace(at, End(range)).second) << range;
      } else {
        EXPECT_TRUE(backwards.insert(at).second) << range;
        ASSERT_TRUE(forwards.contains(at)) << range;
        EXPECT_LE(forwards.at(at), Begin(range) + kRounding) << range;
      }
    }
    ASSERT_FALSE(stages.empty());
    EXPECT_EQ(forwards.size(), stages.size() * iterations * micro_batches);
    EXPECT_EQ(backwards.size(), forwards.size());
  }
  EXPECT_FALSE(transfers.empty());
  for (const auto& [what, of_ranks] : transfers) {
    const std::string members = of_ranks[0]["args"]["ranks"];
    EXPECT_EQ(of_ranks.size(),
              1 + std::count(members.begin(), members.end(), ','))
        << what;
  }
}

TEST(Trace, EncoderAndLanguageRank) {
  const std::string folder = TestFolder("run");
  const Ran ran = RunMimo(TinyTrain(
      folder, {"--ranks=2", "--trace=" + folder + "/trace.json",
               "train.micro_batch_size=1",
               "parallelism={deployment_mode: heterogeneous, modules: {images: "
               "{data_parallel_size: 1}, language: {data_parallel_size: 1, "
               "rank_offset: 1}}}"}));
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(RankNames(folder + "/trace.json"),
              ElementsAre("rank 0: images.0", "rank 1: language.0"));
  CheckRanks(RangesOf(folder + "/trace.json", 2), /*iterations=*/3,
             /*micro_batches=*/4);
  EXPECT_THAT(ran.err,
              MatchesRegex("trace: bubble [0-9.]+ % of the ranks' time, "
                           "[0-9.]+ % by the schedule from the measured "
                           "times\n"));
}

TEST(Trace, ColocatedPipeline) {
  const std::string folder = TestFolder("run");
  const Ran ran = RunMimo(TinyTrain(
      folder, {"--ranks=4", "--trace=" + folder + "/trace.json",
               "model.language.num_layers=2", "train.global_batch_size=8",
               "logging.profile_after=0", "logging.profile_iters=2",
               "parallelism={deployment_mode: colocated, modules: {images: {}, "
               "language: {pipeline_model_parallel_size: 2}}}"}));
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(
      RankNames(folder + "/trace.json"),
      ElementsAre("rank 0: images.0 language.0", "rank 1: images.0 language.0",
                  "rank 2: images.0 language.1",
                  "rank 3: images.0 language.1"));
  const auto ranks = RangesOf(folder + "/trace.json", 4);
  CheckRanks(ranks, /*iterations=*/2, /*micro_batches=*/2);
  // Who has replicas reduces and gathers with them.
  for (const std::vector<json>& ranges : ranks) {
    std::map<std::string, int> count;
    for (const json& range : ranges) ++count[range["name"]];
    EXPECT_GT(count["reduce gradients"], 0);
    EXPECT_GT(count["gather parameters"], 0);
    EXPECT_EQ(count["sum"], 2 * 2);
    EXPECT_EQ(count["update"], 2);
  }
}

TEST(Trace, RanksOfALayer) {  // in six micro-batches
  const auto count = [](const std::string& sizes) {
    const std::set<std::string> kinds = {"all-gather", "all-reduce", "ring",
                                         "reduce-scatter"};
    const std::string folder = TestFolder("run");
    const Ran ran = RunMimo(TinyTrain(
        folder, {"--ranks=2", "--trace=" + folder + "/trace.json",
                 "parallelism={deployment_mode: colocated, modules: {images: "
                 "{}, language: {" +
                     sizes + "}}}"}));
    EXPECT_EQ(ran.code, 0) << ran.err;
    std::map<std::string, int> counts[2];
    for (const json& event : EventsOf(folder + "/trace.json"))
      if (kinds.contains(event["name"]))
        ++counts[event["pid"].get<int>()][event["name"]];
    EXPECT_EQ(counts[0], counts[1]);
    return counts[0];
  };
  const std::string tp = "tensor_model_parallel_size: 2";
  EXPECT_THAT(count(tp), ElementsAre(Pair("all-gather", 6 * 1),
                                     Pair("all-reduce", 6 * 6)));
  EXPECT_THAT(
      count("sequence_parallel: true, " + tp),
      ElementsAre(Pair("all-gather", 6 * 10), Pair("reduce-scatter", 6 * 7)));
  EXPECT_THAT(count("context_parallel_size: 2"),
              ElementsAre(Pair("ring", 6 * 3)));
}

TEST(Trace, OneRank) {
  const std::string folder = TestFolder("run");
  const Ran ran = RunMimo(TinyTrain(
      folder, {"--trace=" + folder + "/trace.json", "logging.profile_after=5",
               "--profile=" + folder + "/profile.json"}));
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(RankNames(folder + "/trace.json"),
              ElementsAre("rank 0: images.0 language.0"));
  std::set<int> micro_batches;
  const auto ranks = RangesOf(folder + "/trace.json", 1);
  for (const json& range : ranks[0]) {
    if (range["name"] == "backward")
      micro_batches.insert(range["args"]["micro_batch"].get<int>());
  }
  EXPECT_THAT(micro_batches, ElementsAre(0, 1));
  // Beside it the profile, as ever.
  EXPECT_FALSE(EventsOf(folder + "/profile.json").empty());
}

TEST(Trace, FewerIterations) {
  const std::string folder = TestFolder("run");
  const Ran ran = RunMimo(
      TinyTrain(folder, {"--ranks=2", "--trace=" + folder + "/trace.json",
                         "train.train_iters=2"}));
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(ran.err,
            "logging.trace: only 2 iterations were run, none was profiled\n");
}

// Modules of which a stage takes known times, and hardly the processor.
constexpr absl::Duration kForward = absl::Milliseconds(10);
constexpr absl::Duration kBackward = absl::Milliseconds(20);

struct SleepNode final : Node {
  Slot in, out;
  const char* name() const override { return "Sleep"; }
  void Backward(BackwardContext& ctx) override {
    absl::SleepFor(kBackward);
    ctx.PassGrad(in, ctx.Take(out));
  }
};

Var Sleep(const Context& ctx, const Var& x) {
  absl::SleepFor(kForward);
  if (ctx.tape == nullptr || !x.needs_grad()) return x;
  auto node = std::make_unique<SleepNode>();
  node->in = x.slot;
  node->out = ctx.tape->NewSlot();
  const Var y{x.value, node->out};
  ctx.tape->Append(std::move(node));
  return y;
}

class SleepyGpt : public GptModel {
 public:
  using GptModel::GptModel;
  Var Forward(const Context& ctx, const Var& embeddings, int64_t batch,
              int64_t seq, std::vector<KvCache>* caches, int64_t cached,
              const Tensor& rows, const Packing& packing) const override {
    return Sleep(ctx, GptModel::Forward(ctx, embeddings, batch, seq, caches,
                                        cached, rows, packing));
  }
};

class SleepyVit : public ClipVit {
 public:
  using ClipVit::ClipVit;
  absl::StatusOr<Var> Forward(const Context& ctx,
                              const Tensor& pixels) const override {
    MIMO_ASSIGN_OR_RETURN(const Var y, ClipVit::Forward(ctx, pixels));
    return Sleep(ctx, y);
  }
  Var Continue(const Context& ctx, const Var& passed,
               int64_t images) const override {
    return Sleep(ctx, ClipVit::Continue(ctx, passed, images));
  }
};

constexpr char kSleepy[] = R"(
model:
  type: mimo
  language: {module: sleepy_gpt, num_layers: 3, hidden_size: 16,
             ffn_hidden_size: 16, num_attention_heads: 2, vocab_size: 400,
             max_sequence_length: 96}
  modalities:
    images:
      encoders: {clip_encoder: {module: sleepy_vit, num_layers: 2,
                 hidden_size: 16, ffn_hidden_size: 16, num_attention_heads: 2,
                 image_size: 16, patch_size: 8, feature_layer: -1}}
      input_projections: [{module: projector, input_size: 16,
                           ffn_hidden_size: 16, output_size: 16}]
  special_token_ids: {images: 4}
data: {type: llava_json, path: tests/fixtures/captions.jsonl,
       tokenizer_vocab_size: 300}
train: {train_iters: 7, micro_batch_size: $0, global_batch_size: $1, seed: 3}
logging: {progress: false, profile_after: 1, profile_iters: 6,
          trace: $2/trace.json}
)";

// How much longer than the schedule's ideal, from its own stages' times, the
// best iteration took.
double OverIdeal(const Layout& layout, int micro_batches) {
  const std::string folder = TestFolder("run");
  ModuleRegistry registry = BuiltinModules();
  registry.Add<GptConfig, SleepyGpt>("sleepy_gpt");
  registry.Add<ClipVitConfig, SleepyVit>("sleepy_vit");
  const int samples = Dp(layout.images);  // of a micro-batch
  const std::string config =
      absl::Substitute(kSleepy, samples, samples * micro_batches, folder);
  const Ran ran =
      RunMimo({"train", "--config",
               Write(folder + "/config.yaml", config + layout.Yaml()),
               absl::StrCat("--ranks=", layout.ranks)},
              registry);
  EXPECT_EQ(ran.code, 0) << ran.err;
  const TracedIteration best = BestIteration(folder + "/trace.json", layout,
                                             /*iterations=*/6, micro_batches);
  StageTimes known = best.times;
  for (auto& [stage, time] : known) {
    time = {absl::ToDoubleMilliseconds(kForward),
            absl::ToDoubleMilliseconds(kBackward)};
    EXPECT_GE(best.times.at(stage).forward, time.forward);
    EXPECT_GE(best.times.at(stage).backward, time.backward);
  }
  // The line is of all iterations.
  double bubble = 0, ideal_bubble = 0;
  EXPECT_EQ(std::sscanf(ran.err.c_str(),
                        "trace: bubble %lf %% of the ranks' time, %lf %% by",
                        &bubble, &ideal_bubble),
            2)
      << ran.err;
  EXPECT_NEAR(ideal_bubble,
              100 * Ideal(layout, known, micro_batches).bubble_share, 5);
  EXPECT_GT(bubble, ideal_bubble - 5);
  return best.over;
}

TEST(Trace, TakesWhatTheScheduleSays) {
  for (const int micro_batches : {4, 8}) {
    for (const Layout& layout :
         std::vector<Layout>{{"heterogeneous", 2, "dp1", "dp1 @1"},
                             {"heterogeneous", 4, "dp1", "pp3 dp1 @1"},
                             {"colocated", 2, "dp2", "pp2"},
                             {"colocated", 3, "dp3", "pp3"},
                             {"homogeneous", 2, "pp2", "pp2"}}) {
      SCOPED_TRACE(absl::StrCat(layout.Yaml(), " of ", micro_batches));
      const double over = OverIdeal(layout, micro_batches);
      EXPECT_LT(over, 0.1);
      EXPECT_GT(over, -0.1);
    }
  }
}

}  // namespace
}  // namespace mimo
