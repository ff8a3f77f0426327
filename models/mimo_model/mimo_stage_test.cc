#include "models/mimo_model/mimo_stage.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/log_severity.h"
#include "absl/log/scoped_mock_log.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/testing/backend.h"
#include "mimo/checkpoint/convert.h"
#include "models/llava/llava.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

class MimoStageTest : public BackendTest {};
MIMO_ON_BACKENDS(MimoStageTest);

// The bytes of every gradient and loss of four updates of two micro-batches
// each, the last of them of another shape.
struct Bytes {
  std::map<std::string, std::vector<uint8_t>> gradients;
  std::vector<double> losses;
};

struct How {
  bool capture = false;
  int ahead = 0;
  bool late = false;  // weights come when they are asked for
  bool frozen_language_model = false, frozen_encoders = false;
  bool pack = false;
};

// NaNs take the place of trainable weights until a forward asks for them.
class LateWeights : public ParameterObserver {
 public:
  LateWeights(const std::vector<Parameter*>& parameters, Allocator& allocator)
      : stream_(allocator.stream()) {
    for (Parameter* p : parameters) {
      if (p->frozen) continue;
      weights_.emplace(p, p->data.Clone(allocator));
      p->observer = this;
    }
  }
  void Take() {
    for (const auto& [p, weights] : weights_)
      FillBytes(p->data.data(), 0xff, p->data.bytes(), stream_);
  }
  void BeforeRead(Parameter& parameter) override {
    parameter.data.CopyFrom(weights_.at(&parameter));
  }
  void LastUseGone(Parameter&) override {}

 private:
  const Stream stream_;
  std::map<Parameter*, Tensor> weights_;
};

std::unique_ptr<MimoModel> BuildOn(
    const Backend& on, Allocator& allocator,
    const MimoModelConfig& config = LlavaModelConfig(Tiny())) {
  auto model = MimoModel::Build(
      config, BuiltinModules(),
      {.allocator = &allocator, .dtype = on.dtype, .seed = 11});
  CHECK_OK(model.status());
  return *std::move(model);
}

Bytes Train(const Backend& on, const How& how) {
  Allocator allocator(StreamOf(on)), host;
  MimoModelConfig config = LlavaModelConfig(Tiny());
  config.freeze_language_model = how.frozen_language_model;
  config.freeze_modality_encoders["images"] = how.frozen_encoders;
  const auto model = BuildOn(on, allocator, config);
  MimoStage stage(*model, allocator, {.capture = how.capture, .pack = how.pack},
                  ModelLinks(*model, how.ahead));
  // Other values of the same shape, and at last other labelled rows.
  std::vector<MicroBatch> batches(8, TwoSamples());
  for (size_t i = 0; i < batches.size(); ++i) {
    for (float& x : batches[i].modalities["images"].values)
      x *= 1 + 0.1f * (i / 2) + i % 2;
  }
  batches.back().labels.assign(batches.back().labels.size(), 5);
  // As many rows packed, the second sample before the first.
  for (size_t i = 4; i < 7; ++i) {
    MicroBatch& batch = batches[i];
    std::ranges::rotate(batch.input_ids, batch.input_ids.begin() + batch.seq);
    std::ranges::rotate(batch.labels, batch.labels.begin() + batch.seq);
    std::ranges::reverse(batch.lengths);
  }
  Bytes out;
  std::vector<Tensor> losses;  // which nobody waits for
  std::optional<LateWeights> late;
  if (how.late) late.emplace(stage.Parameters(), allocator);
  for (size_t i = 0; i < batches.size(); ++i) {
    if (late) late->Take();
    const auto loss = stage.ForwardBackward(
        {batches[i]}, Tensor::From<double>(allocator, {1}, {0.25 + i / 2}),
        {.next = [&](int next) {
          const size_t at = i + 1 + next;
          return at < batches.size() ? &batches[at] : nullptr;
        }});
    CHECK_OK(loss.status());
    EXPECT_EQ(stage.ahead(), std::min<int>(how.ahead, batches.size() - i - 1));
    losses.push_back(*loss);
    if (i % 2 == 0) continue;
    for (Parameter* p : stage.Parameters()) {
      if (p->frozen) continue;
      const Tensor grad = p->Grad().Clone(host);
      const uint8_t* bytes = static_cast<const uint8_t*>(grad.data());
      std::vector<uint8_t>& all = out.gradients[p->name];
      all.insert(all.end(), bytes, bytes + grad.bytes());
      p->ForgetGrad();
    }
  }
  for (const Tensor& loss : losses) out.losses.push_back(HostValue(loss));
  return out;
}

TEST_P(MimoStageTest, CapturedAndAheadAreBitwiseTheEager) {
  How how;
  for (bool frozen_language_model : {false, true}) {
    for (bool frozen_encoders : {false, true}) {
      how = {.frozen_language_model = frozen_language_model,
             .frozen_encoders = frozen_encoders,
             .pack = frozen_language_model != frozen_encoders};
      const Bytes eager = Train(backend(), how);
      EXPECT_FALSE(eager.gradients.empty());
      for (const auto& [capture, ahead] :
           {std::pair(true, 0), {false, 1}, {true, 1}, {false, 3}, {true, 3}}) {
        how.capture = capture;
        how.ahead = ahead;
        const Bytes other = Train(backend(), how);
        EXPECT_EQ(other.losses, eager.losses);
        for (const auto& [name, bytes] : eager.gradients)
          EXPECT_EQ(other.gradients.at(name), bytes) << name;
      }
    }
  }
}

// Labels that are the likeliest or the least likely token, by far, after every
// token of text that has a label; one rank.
TEST_P(MimoStageTest, MistakesAreTheLabelsThatAreNotTheLikeliest) {
  Allocator allocator(StreamOf(backend()));
  const auto model = BuildOn(backend(), allocator);
  MimoStage stage(*model, allocator);
  MicroBatch batch = TwoSamples();
  const Context ctx{.allocator = &allocator};
  const auto inputs = model->Prepare(ctx, batch, {.all_rows = true});
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  const auto hidden = model->Forward(ctx, *inputs);
  ASSERT_TRUE(hidden.ok()) << hidden.status();
  Allocator host;
  const Tensor on_host =
      model->language_model().Logits(ctx, hidden->value).Clone(host);
  std::vector<double> logits(on_host.numel());
  ASSERT_TRUE(ConvertElements(on_host.data(), on_host.dtype(), logits.data(),
                              DType::kFloat64, on_host.numel())
                  .ok());
  const int64_t vocab = model->language_model().vocab_size();
  std::vector<double> wanted(batch.batch);
  int right = 0;
  for (int64_t i = 0; i < batch.batch * batch.seq; ++i) {
    int32_t& label = batch.labels[i];
    if (i % batch.seq == 0 || label == kIgnoreLabel) continue;
    const auto begin = logits.begin() + (i - 1) * vocab, end = begin + vocab;
    std::vector<double> sorted(begin, end);
    std::sort(sorted.begin(), sorted.end());
    const double top = sorted[vocab - 1], spread = top - sorted[0];
    if (top - sorted[vocab - 2] < 0.02 * spread) {
      label = kIgnoreLabel;  // another kernel may round another way
    } else if (i % 2 == 0) {
      label = std::max_element(begin, end) - begin;
      ++right;
    } else {
      label = std::min_element(begin, end) - begin;
      ++wanted[i / batch.seq];
    }
  }
  EXPECT_GT(right, 0);
  EXPECT_GT(wanted[0] + wanted[1], 0);
  const auto found = stage.Mistakes({batch, TwoSamples(), batch});
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 3u);
  EXPECT_EQ((*found)[0], wanted);
  EXPECT_EQ((*found)[2], wanted);
}

TEST_P(MimoStageTest, ForwardsAskForTheirWeights) {
  const Bytes wanted = Train(backend(), {});
  for (bool capture : {false, true}) {
    const Bytes late = Train(backend(), {.capture = capture, .late = true});
    EXPECT_EQ(late.losses, wanted.losses);
    EXPECT_EQ(late.gradients, wanted.gradients);
  }
}

TEST_P(MimoStageTest, AnotherBatchThanAnnounced) {
  // A fork has no use of its parent's GPU.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Allocator allocator(StreamOf(backend()));
  const auto model = BuildOn(backend(), allocator);
  MimoStage stage(*model, allocator, {}, ModelLinks(*model, 2));
  const MicroBatch batch = TwoSamples();
  MicroBatch other = batch;
  other.input_ids[0] = (other.input_ids[0] + 1) % kImageToken;
  const auto then = [](std::vector<MicroBatch> batches) {
    return AroundIteration{.next = [batches](int i) {
      return i < static_cast<int>(batches.size()) ? &batches[i] : nullptr;
    }};
  };
  // A batch that does not fit is an error in its turn.
  MicroBatch wrong = batch;
  wrong.input_ids[0] = 99;
  EXPECT_TRUE(stage.ForwardBackward({batch}, 1, then({batch, wrong})).ok());
  EXPECT_TRUE(stage.ForwardBackward({batch}, 1, then({wrong})).ok());
  EXPECT_FALSE(stage.ForwardBackward({wrong}, 1).ok());
  EXPECT_TRUE(stage.ForwardBackward({batch}, 1, then({other})).ok());
  EXPECT_DEATH(stage.ForwardBackward({batch}, 1).IgnoreError(), "announced");
}

// Where another shape finds no room, what was captured makes some, and all goes
// on as if it had never been.
TEST_P(MimoStageTest, ShapesThatMemoryDoesNotHoldRunUncaptured) {
  if (backend().device == Device::kCpu) GTEST_SKIP() << "nothing is captured";
  Sample text;
  text.input_ids = text.labels = {1, 2, 3};
  const MicroBatch other = Collate({text}, /*pad_id=*/0);
  std::vector<double> losses[2];
  absl::ScopedMockLog log;
  EXPECT_CALL(log, Log(absl::LogSeverity::kWarning, testing::_,
                       testing::HasSubstr("not captured from here on")));
  log.StartCapturingLogs();
  for (const bool capture : {false, true}) {
    Allocator allocator(StreamOf(backend()));
    const auto model = BuildOn(backend(), allocator);
    int64_t free_bytes = int64_t{1} << 40;
    MimoStage stage(
        *model, allocator,
        {.capture = capture, .free_bytes = [&](Device) { return free_bytes; }});
    for (int i = 0; i < 8; ++i) {
      if (i == 3) free_bytes = 100;  // the first shape is captured
      const auto loss = stage.ForwardBackward(
          {i < 3 || i % 2 == 0 ? TwoSamples() : other}, 1);
      ASSERT_TRUE(loss.ok()) << loss.status();
      losses[capture].push_back(*loss);
    }
  }
  EXPECT_EQ(losses[true], losses[false]);
}

// Texts of 18 lengths, a pass each; the first of more than 16 is said once.
TEST_P(MimoStageTest, MoreShapesThanAreCapturedAreSaid) {
  if (backend().device == Device::kCpu) GTEST_SKIP() << "nothing is captured";
  Allocator allocator(StreamOf(backend()));
  const auto model = BuildOn(backend(), allocator);
  MimoStage stage(
      *model, allocator,
      {.capture = true, .free_bytes = [](Device) { return int64_t{1} << 40; }});
  std::vector<std::string> said;
  absl::ScopedMockLog log;
  ON_CALL(log, Log(absl::LogSeverity::kWarning, testing::_, testing::_))
      .WillByDefault(
          [&](absl::LogSeverity, const std::string&,
              const std::string& message) { said.push_back(message); });
  log.StartCapturingLogs();
  for (int length = 3; length < 21; ++length) {
    EXPECT_EQ(said.size(), length - 3 > 16 ? 1u : 0u);
    Sample text;
    text.input_ids = text.labels = std::vector<int32_t>(length, 1);
    ASSERT_TRUE(stage.ForwardBackward({Collate({text}, /*pad_id=*/0)}, 1).ok());
    for (Parameter* p : stage.Parameters()) p->ForgetGrad();
  }
  ASSERT_EQ(said.size(), 1u);
  EXPECT_THAT(said[0], testing::HasSubstr(
                           "train.cuda_graph: batches of more than 16 shapes"));
}

// Waits for the GPU when a parameter is read.
class WaitingWeights : public ParameterObserver {
 public:
  explicit WaitingWeights(Stream stream) : stream_(stream) {}
  void BeforeRead(Parameter&) override { Synchronize(stream_); }
  void LastUseGone(Parameter&) override {}

 private:
  const Stream stream_;
};

TEST_P(MimoStageTest, AForwardThatWaitsCannotBeCaptured) {
  if (backend().device == Device::kCpu) GTEST_SKIP() << "nothing is captured";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Allocator allocator(StreamOf(backend()));
  const auto model = BuildOn(backend(), allocator);
  WaitingWeights waiting(allocator.stream());
  for (Parameter* p : model->Parameters()) p->observer = &waiting;
  MimoStage stage(*model, allocator, {.capture = true});
  const auto run = [&] {
    ASSERT_TRUE(stage.ForwardBackward({TwoSamples()}, 1).ok());
    for (Parameter* p : stage.Parameters()) p->ForgetGrad();
  };
  run();  // which is the eager one
  EXPECT_EXIT(run(), testing::ExitedWithCode(2),
              "mimo: train.cuda_graph: true, but this pass cannot be captured "
              "\\(cudaStreamSynchronize.*\\), wanted false\n$");
}

TEST_P(MimoStageTest, SameAgain) {
  const How how = {.capture = true, .ahead = 2};
  const Bytes one = Train(backend(), how);
  const Bytes two = Train(backend(), how);
  EXPECT_EQ(one.losses, two.losses);
  EXPECT_EQ(one.gradients, two.gradients);
}

}  // namespace
}  // namespace mimo
