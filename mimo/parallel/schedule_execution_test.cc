// Programs carried out as they stand, by ranks that are threads: transfers over
// bridges and pipeline groups whose sends wait to be received, on real data.
// Every stage multiplies by a number of its own, so that values and gradients
// are whole numbers that one rank computes as well.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "comm/bridge/bridge.h"
#include "comm/bridge/bridge_testing.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "mimo/parallel/pipeline_schedule.h"

namespace mimo {
namespace {

constexpr int kRows = 12;  // of a global micro-batch

struct Module {
  PipelineModule pipeline;
  int offset = 0, dp = 1, tp = 1;

  // Ranks of a stage: tp fast, then dp; stages one behind another.
  BridgeSide Side(int stage) const {
    return Stage(offset + stage * dp * tp, dp, 1, tp);
  }
};

struct Layout {
  PipelineSchedule schedule;
  std::vector<Module> modules;
  int world = 0;

  Layout(std::vector<Module> of, const PipelineScheduleOptions& options)
      : modules(std::move(of)) {
    std::vector<PipelineModule> graph;
    for (const Module& module : modules) {
      graph.push_back(module.pipeline);
      const BridgeSide last = module.Side(module.pipeline.stages - 1);
      world = std::max(world, last.ranks.back() + 1);
    }
    auto created = PipelineSchedule::Create(graph, options);
    EXPECT_TRUE(created.ok()) << created.status();
    schedule = *std::move(created);
  }

  BridgeSide Side(int stage) const {
    const PipelineStage& at = schedule.stages[stage];
    return modules[at.module].Side(at.stage);
  }

  // What one rank computes, of row r of micro-batch m.
  double Output(int stage, int m, int r) const {
    double x = 0;
    bool source = true;
    for (const auto [from, to] : schedule.edges) {
      if (to != stage) continue;
      x += Output(from, m, r);
      source = false;
    }
    return (stage + 2) * (source ? 1 + r + 100 * m + 7 * stage : x);
  }
  double InputGradient(int stage, int m, int r) const {
    double gradient = 0;
    bool sink = true;
    for (const auto [from, to] : schedule.edges) {
      if (from != stage) continue;
      gradient += InputGradient(to, m, r);
      sink = false;
    }
    return (stage + 2) * (sink ? 1 + r % 5 + 10 * m : gradient);
  }
};

using Rows = std::vector<double>;

// A rank: it knows its program and moves rows, nothing of the schedule.
class Executor {
 public:
  Executor(const Layout& layout, Communicator& world)
      : layout_(layout), schedule_(layout.schedule), world_(world) {}

  absl::Status Run() {
    MIMO_RETURN_IF_ERROR(Connect());
    std::vector<int> held;
    for (int i = 0; i < schedule_.stages.size(); ++i) {
      if (Lane(i) >= 0) held.push_back(i);
    }
    for (const PipelineStep& step : schedule_.Program(held)) {
      if (step.kind == PipelineStep::kForward) {
        Forward(step.at, step.forward);
      } else if (step.kind == PipelineStep::kBackward) {
        Backward(step.at, step.backward);
      } else {
        MIMO_RETURN_IF_ERROR(Transfer(step));
      }
    }
    return Check(held);
  }

 private:
  using Key = std::pair<int, int>;  // stage or edge, micro-batch

  // This rank's replica of a stage, or -1.
  int Lane(int stage) const {
    const BridgeSide side = layout_.Side(stage);
    const int place = world_.rank() - side.ranks.front();
    return place >= 0 && place < side.ranks.size() ? place / side.tp : -1;
  }
  int Lanes(int stage) const { return layout_.Side(stage).dp; }
  int FirstRow(int stage) const { return Lane(stage) * kRows / Lanes(stage); }

  absl::Status Connect() {
    bridges_.resize(schedule_.edges.size());
    for (int e = 0; e < schedule_.edges.size(); ++e) {
      const auto [from, to] = schedule_.edges[e];
      if (Ring(e)) continue;
      const BridgeSide source = layout_.Side(from);
      const BridgeSide destination = layout_.Side(to);
      MIMO_ASSIGN_OR_RETURN(
          bridges_[e], MakeBridge(world_, source, destination,
                                  DefaultBridgeRouting(source, destination)));
    }
    for (const Module& module : layout_.modules) {
      const int width = module.dp * module.tp;
      std::vector<std::vector<int>> lines(width);
      for (int i = 0; i < width * module.pipeline.stages; ++i) {
        lines[i % width].push_back(module.offset + i);
      }
      MIMO_ASSIGN_OR_RETURN(
          pipelines_.emplace_back(),
          world_.Split(absl::StrCat(module.pipeline.name, "/pp"), lines));
    }
    return absl::OkStatus();
  }
  bool Ring(int edge) const {
    const auto [from, to] = schedule_.edges[edge];
    return schedule_.stages[from].module == schedule_.stages[to].module;
  }

  void Forward(int stage, int m) {
    outputs_[{stage, m}] =
        Compute(stage, &PipelineEdge::to, activations_, m,
                [&](int r) { return 1 + r + 100 * m + 7 * stage; });
  }
  void Backward(int stage, int m) {
    input_gradients_[{stage, m}] =
        Compute(stage, &PipelineEdge::from, gradients_, m,
                [&](int r) { return 1 + r % 5 + 10 * m; });
  }
  // The stage's multiple of the sum of what came along the edges of which it is
  // this end; of value(row) where there are none.
  Rows Compute(int stage, int PipelineEdge::*end,
               const std::map<Key, Rows>& came, int m,
               absl::FunctionRef<double(int)> value) {
    Rows sum(kRows / Lanes(stage), 0);
    bool any = false;
    for (int e = 0; e < schedule_.edges.size(); ++e) {
      if (schedule_.edges[e].*end != stage) continue;
      any = true;
      for (int i = 0; i < sum.size(); ++i) sum[i] += came.at({e, m})[i];
    }
    for (int i = 0; i < sum.size(); ++i) {
      sum[i] = (stage + 2) * (any ? sum[i] : value(FirstRow(stage) + i));
    }
    return sum;
  }

  absl::Status Transfer(const PipelineStep& step) {
    const int e = step.at, f = step.forward, b = step.backward;
    const auto [from, to] = schedule_.edges[e];
    double *sent = nullptr, *received = nullptr;
    double *gradient_sent = nullptr, *gradient_received = nullptr;
    const auto place = [&](std::map<Key, Rows>& rows, Key key, int stage) {
      return rows.emplace(key, Rows(kRows / Lanes(stage), -1))
          .first->second.data();
    };
    if (Lane(from) >= 0) {
      if (f >= 0) sent = outputs_.at({from, f}).data();
      if (b >= 0) gradient_received = place(gradients_, {e, b}, from);
    }
    if (Lane(to) >= 0) {
      if (f >= 0) received = place(activations_, {e, f}, to);
      if (b >= 0) gradient_sent = input_gradients_.at({to, b}).data();
    }
    if (Ring(e)) {
      Communicator& pipeline = *pipelines_[schedule_.stages[from].module];
      const int64_t count = kRows / Lanes(from);
      std::vector<mimo::Transfer> transfers;
      const auto add = [&](mimo::Transfer::Kind kind, double* data, int peer) {
        if (data == nullptr) return;
        transfers.push_back({kind, data, count, DType::kFloat64, peer});
      };
      const int upper = schedule_.stages[from].stage;
      add(mimo::Transfer::kSend, sent, upper + 1);
      add(mimo::Transfer::kRecv, gradient_received, upper + 1);
      add(mimo::Transfer::kRecv, received, upper);
      add(mimo::Transfer::kSend, gradient_sent, upper);
      pipeline.Exchange(transfers, Stream());
      return pipeline.Health();
    }
    const BridgePayload payload = {
        .source_rows = NearEqualRows(kRows, Lanes(from)),
        .destination_rows = NearEqualRows(kRows, Lanes(to)),
        .dtype = DType::kFloat64};
    const Bridge::Pass forward = {payload, sent, received};
    const Bridge::Pass backward = {payload, gradient_sent, gradient_received};
    Bridge& bridge = *bridges_[e].bridge;
    if (b < 0) return bridge.Forward(forward, Stream());
    if (f < 0) return bridge.Backward(backward, Stream());
    return bridge.ForwardAndBackward(forward, backward, Stream());
  }

  absl::Status Check(const std::vector<int>& held) const {
    for (int stage : held) {
      for (int m = 0; m < schedule_.options.micro_batches; ++m) {
        for (int i = 0; i < kRows / Lanes(stage); ++i) {
          const int r = FirstRow(stage) + i;
          if (outputs_.at({stage, m})[i] != layout_.Output(stage, m, r) ||
              (schedule_.stages[stage].backward &&
               input_gradients_.at({stage, m})[i] !=
                   layout_.InputGradient(stage, m, r))) {
            return absl::DataLossError(absl::StrCat(
                "stage ", stage, ", micro-batch ", m, ", row ", r));
          }
        }
      }
    }
    return absl::OkStatus();
  }

  const Layout& layout_;
  const PipelineSchedule& schedule_;
  Communicator& world_;
  std::vector<BridgeWithGroups> bridges_;                 // [edges]
  std::vector<std::unique_ptr<Communicator>> pipelines_;  // [modules]
  std::map<Key, Rows> outputs_, input_gradients_;         // of stages
  std::map<Key, Rows> activations_, gradients_;           // of edges, received
};

void ExpectRuns(const std::vector<Module>& modules,
                PipelineScheduleOptions options = {}) {
  for (int m : {1, 2, 8}) {
    options.micro_batches = m;
    const Layout layout(modules, options);
    const auto results = RunRanks(layout.world, [&](Communicator& world) {
      return Executor(layout, world).Run();
    });
    for (int rank = 0; rank < layout.world; ++rank) {
      EXPECT_TRUE(results[rank].ok())
          << m << " micro-batches, rank " << rank << ": " << results[rank];
    }
  }
}

Module Encoder(const char* name, int offset, int pp, int dp, int tp,
               int frozen_stages = 0) {
  return {{name, pp, {"llm"}, frozen_stages}, offset, dp, tp};
}
Module Llm(int offset, int pp, int dp, int tp, int frozen_stages = 0) {
  return {{"llm", pp, {}, frozen_stages}, offset, dp, tp};
}

TEST(Execution, OneModule) { ExpectRuns({Llm(0, 3, 2, 1)}); }
TEST(Execution, Encoder1LlmPp3) {
  ExpectRuns({Encoder("images", 0, 1, 1, 1), Llm(1, 3, 1, 1)});
}
TEST(Execution, EncoderTp2Pp2LlmTp2Pp2) {
  ExpectRuns({Encoder("images", 0, 2, 1, 2), Llm(4, 2, 1, 2)});
}
TEST(Execution, FanInEncoderDp4LlmTp2Pp2) {
  ExpectRuns({Encoder("images", 0, 1, 4, 1), Llm(4, 2, 1, 2)});
}
TEST(Execution, FanOutEncoderTp2Pp2LlmDp4) {
  ExpectRuns({Encoder("images", 0, 2, 1, 2), Llm(4, 1, 4, 1)});
}
TEST(Execution, TwoToThree) {
  ExpectRuns({Encoder("images", 0, 1, 2, 1), Llm(2, 2, 3, 1)});
}
TEST(Execution, EncodersPp1AndPp2) {
  ExpectRuns({Encoder("audio", 0, 1, 2, 1), Encoder("images", 2, 2, 1, 1),
              Llm(4, 2, 1, 2)});
}
// Megatron's order of transfers hangs here.
TEST(Execution, EncodersPp1AndPp3) {
  ExpectRuns({Encoder("audio", 0, 1, 1, 1), Encoder("images", 1, 3, 1, 1),
              Llm(4, 1, 2, 1)});
}
TEST(Execution, EncodersOnTheSameRanks) {
  ExpectRuns({Encoder("images", 0, 2, 1, 2), Encoder("audio", 0, 2, 2, 1),
              Llm(4, 2, 1, 2)});
}
TEST(Execution, GraphWithSkipsAndTwoSinks) {
  ExpectRuns({{{"a", 1, {"b", "d"}}, 0},
              {{"b", 2, {"c", "d", "e"}}, 1},
              {{"c", 1, {"d"}}, 3, 2},
              {{"d", 2, {}}, 5},
              {{"e", 1, {}}, 7}});
}
TEST(Execution, PartlyOverlappingSpans) {
  ExpectRuns({Encoder("images", 0, 1, 4, 1), Llm(2, 2, 1, 2)});
}
TEST(Execution, SharedRanksInOneStage) {
  ExpectRuns({Encoder("images", 0, 1, 4, 1), Llm(0, 1, 2, 2)});
}
TEST(Execution, ThreePhases) {
  ExpectRuns({Encoder("images", 0, 1, 4, 1), Llm(0, 2, 2, 1)},
             {.three_phases = true});
}
TEST(Execution, ThreePhasesPipelinedEncoder) {
  ExpectRuns({Encoder("images", 0, 2, 1, 2), Encoder("audio", 0, 1, 4, 1),
              Llm(0, 2, 2, 1)},
             {.three_phases = true});
}
TEST(Execution, FrozenEncoder) {
  ExpectRuns({Encoder("images", 0, 2, 2, 1, /*frozen_stages=*/2),
              Encoder("audio", 4, 1, 1, 1), Llm(5, 2, 1, 1)});
  ExpectRuns(
      {Encoder("images", 0, 3, 1, 2, /*frozen_stages=*/2), Llm(6, 2, 1, 1)});
  ExpectRuns(
      {Encoder("images", 0, 2, 1, 2, /*frozen_stages=*/1), Llm(0, 2, 2, 1)},
      {.three_phases = true});
}
TEST(Execution, FrozenLanguageModel) {
  ExpectRuns(
      {Encoder("images", 0, 1, 2, 1), Llm(2, 2, 1, 2, /*frozen_stages=*/2)});
}
TEST(Execution, Evaluation) {
  ExpectRuns({Encoder("images", 0, 2, 2, 1), Llm(4, 2, 1, 2)},
             {.forward_only = true});
}

}  // namespace
}  // namespace mimo
