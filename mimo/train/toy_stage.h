// For tests: the smallest thing that trains, and an endless stream for it.
#ifndef MIMO_MIMO_TRAIN_TOY_STAGE_H_
#define MIMO_MIMO_TRAIN_TOY_STAGE_H_

#include <cmath>
#include <cstdint>
#include <deque>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "kernels/base/status_macros.h"
#include "mimo/data/batch.h"
#include "mimo/train/batch_source.h"
#include "mimo/train/train_stage.h"

namespace mimo {

// Each token's label is a linear function of the token before it, in four
// features: prediction = weight . f(input_ids[t - 1]) + bias, the loss half the
// squared difference to labels[t] / 10.
class ToyStage : public TrainStage {
 public:
  explicit ToyStage(Allocator& allocator) : allocator_(allocator) {
    Init(allocator, weight_, "toy.weight", {1, 4}, false);
    Init(allocator, bias_, "toy.bias", {1}, false);
    Init(allocator, frozen_, "toy.frozen", {2, 2}, true);
  }

  std::vector<Parameter*> Parameters() override {
    return {&weight_, &frozen_, &bias_};
  }
  absl::StatusOr<Tensor> ForwardBackward(
      absl::Span<const MicroBatch> batches, const Tensor& loss_scale,
      const AroundIteration& around = {}) override {
    double sum = 0;
    for (size_t i = 0; i < batches.size(); ++i) {
      if (!announced.empty()) {  // that comes
        CHECK(batches[i].input_ids == announced.front());
        announced.pop_front();
      }
      if (i + 1 == batches.size()) around.before_last_backward("toy");
      ++backwards;
      if (error) MIMO_RETURN_IF_ERROR(error());
      double grad[5] = {};
      const double broken = factor ? factor() : 1;
      sum += Run(batches[i], grad) * broken;
      for (double& g : grad) g *= broken;
      const double scale = loss_scale.span<double>()[0];
      Add(weight_, grad, scale);
      Add(bias_, grad + 4, scale);
      if (i + 1 == batches.size()) around.after_last_backward();
    }
    for (int i = announced.size(); i < run_ahead; ++i) {
      const auto next = around.next(i);
      if (!next.ok() || *next == nullptr) break;
      announced.push_back((*next)->input_ids);
      ++announcements;
    }
    return Tensor::From<double>(allocator_, {1}, {sum});
  }
  absl::StatusOr<double> Loss(absl::Span<const MicroBatch> batches) override {
    double grad[5] = {}, sum = 0;
    for (const MicroBatch& batch : batches) sum += Run(batch, grad);
    return sum;
  }
  bool CountsTokens() const override { return true; }

  double IdealBubble(int, const StageTimes&) override { return 0; }
  void SetProfiler(Profiler*) override {}

  std::vector<float> Weights() {
    std::vector<float> all;
    for (Parameter* parameter : Parameters()) {
      for (float x : parameter->data.span<float>()) all.push_back(x);
    }
    return all;
  }
  int64_t backwards = 0;  // micro-batches of ForwardBackward
  int run_ahead = 2;      // micro-batches that it asks for before their turn
  int64_t announcements = 0;
  std::deque<std::vector<int32_t>> announced;  // their input_ids
  // Asked before each backward: an error to return, what to multiply the loss
  // by.
  std::function<absl::Status()> error;
  std::function<double()> factor;

 private:
  static void Init(Allocator& allocator, Parameter& parameter,
                   const std::string& name, Shape shape, bool frozen) {
    parameter.name = name;
    parameter.frozen = frozen;
    parameter.data = Tensor(allocator, shape, DType::kFloat32);
    int64_t i = 0;
    for (float& x : parameter.data.span<float>()) x = 0.5f - 0.3f * i++;
    if (frozen) return;
    parameter.main_grad = Tensor(allocator, shape, DType::kFloat32);
    for (float& g : parameter.main_grad.span<float>()) g = NAN;
  }
  double Run(const MicroBatch& batch, double* grad) {
    const auto weight = weight_.data.span<float>();
    double sum = 0;
    for (int64_t b = 0; b < batch.batch; ++b) {
      for (int64_t t = 1; t < batch.seq; ++t) {
        const int32_t label = batch.labels[b * batch.seq + t];
        if (label == kIgnoreLabel) continue;
        const double x = batch.input_ids[b * batch.seq + t - 1] / 10.0;
        const double f[5] = {x, x * x, std::sin(3 * x), std::cos(3 * x), 1};
        double error = bias_.data.span<float>()[0] - label / 10.0;
        for (int i = 0; i < 4; ++i) error += weight[i] * f[i];
        sum += error * error / 2;
        for (int i = 0; i < 5; ++i) grad[i] += error * f[i];
      }
    }
    return sum;
  }
  static void Add(Parameter& parameter, const double* grad, double scale) {
    const float beta = parameter.NextBeta();
    for (float& g : parameter.main_grad.span<float>()) {
      const float added = static_cast<float>(scale * *grad++);
      g = beta == 0 ? added : g + added;
    }
  }

  Allocator& allocator_;
  Parameter weight_, bias_, frozen_;
};

// Sample k is a function of k and the seed: 2 to 9 tokens, about a third of
// them not labelled.
class ToySource : public BatchSource {
 public:
  ToySource(int64_t micro_batch_size, uint32_t seed, DataSlice slice = {})
      : micro_batch_size_(micro_batch_size), seed_(seed), slice_(slice) {}

  absl::StatusOr<MicroBatch> Next() override {
    std::vector<Sample> samples;
    for (int64_t i = 0; i < micro_batch_size_; ++i) {
      const int64_t k = next_ + slice_.rank * micro_batch_size_ + i;
      std::mt19937 rng(seed_ + 1000003u * static_cast<uint32_t>(k));
      Sample sample;
      const int64_t length = 2 + rng() % 8;
      for (int64_t t = 0; t < length; ++t) {
        const int32_t id = static_cast<int32_t>(rng() % 20);
        sample.input_ids.push_back(id);
        sample.labels.push_back(rng() % 3 == 0 || !labelled ? kIgnoreLabel
                                                            : id);
      }
      samples.push_back(std::move(sample));
    }
    next_ += micro_batch_size_ * slice_.size;
    return Collate(samples, 0);
  }
  absl::Status Seek(int64_t samples) override {
    next_ = samples;
    return absl::OkStatus();
  }

  bool labelled = true;

 private:
  int64_t micro_batch_size_;
  uint32_t seed_;
  DataSlice slice_;
  int64_t next_ = 0;  // of the next global micro-batch
};

// A metrics file's lines without what a clock measured.
inline std::vector<nlohmann::json> ReadMetrics(const std::string& path) {
  std::vector<nlohmann::json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line) && !file.eof();) {
    nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
    json.erase("tokens_per_second");
    json.erase("iteration_time_ms");
    lines.push_back(std::move(json));
  }
  return lines;
}

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_TOY_STAGE_H_
