// The whole training step of a LLaVA config on random data: time, tokens/s, the
// share of this machine's own sgemm peak that it reaches, and memory.
//
//   bazel run -c opt //bench:llava_step -- [--config F] [--batch B] [--seq S]
//       [--labelled L] [--seconds N] [--describe]
//
// The defaults are what the default job gives a step on average.
// One step = forward and backward of B samples of S tokens (one image each, the
// last L tokens labelled), the global norm, clipping and AdamW.
// GFLOP a step, forward and backward (3 times the forward's products):
//   layers   6 * weights * tokens        of both towers and the projector
//   head     6 * H * V * labelled        (ignored rows are not computed)
//   attention  12 * B * S^2 * N * D      half of it where causal
// The head's second forward in the backward is not counted.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/str_format.h"
#include "cli/args.h"
#include "cli/working_directory.h"
#include "kernels/base/parallel.h"
#include "kernels/base/status_macros.h"
#include "kernels/gemm/gemm.h"
#include "kernels/random/philox.h"
#include "mimo/optim/adamw.h"
#include "models/llava/llava.h"
#include "models/llava/model_section.h"
#include "models/mimo_model/mimo_stage.h"

namespace mimo {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

// Median seconds of `run` over about `seconds`, five runs at least.
double Median(double seconds, const std::function<void()>& run) {
  for (int i = 0; i < 3; ++i) run();
  std::vector<double> times;
  const Clock::time_point start = Clock::now();
  while (times.size() < 5 || Seconds(Clock::now() - start) < seconds) {
    const Clock::time_point begin = Clock::now();
    run();
    times.push_back(Seconds(Clock::now() - begin));
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2,
                   times.end());
  return times[times.size() / 2];
}

double SgemmPeakGflops() {
  constexpr int64_t kSize = 1536;
  std::vector<float> a(kSize * kSize), b(kSize * kSize), c(kSize * kSize);
  kernels::FillNormal({.out = a.data(),
                       .size = kSize * kSize,
                       .seed = 1,
                       .stream = 1,
                       .dtype = DType::kFloat32},
                      0, 1, {});
  kernels::FillNormal({.out = b.data(),
                       .size = kSize * kSize,
                       .seed = 1,
                       .stream = 2,
                       .dtype = DType::kFloat32},
                      0, 1, {});
  const double seconds = Median(1, [&] {
    kernels::Gemm({.a = a.data(),
                   .b = b.data(),
                   .c = c.data(),
                   .m = kSize,
                   .n = kSize,
                   .k = kSize,
                   .dtype = DType::kFloat32},
                  {});
  });
  return 2.0 * kSize * kSize * kSize / seconds / 1e9;
}

struct Options {
  int64_t batch, seq, labelled;
};

MicroBatch RandomBatch(const LlavaConfig& config, const Options& options) {
  const int64_t image_tokens = config.vision.features();
  const int32_t image = config.special_token_ids.at(kImages);
  PhiloxSequence random(7, 0);
  std::vector<Sample> samples(options.batch);
  for (Sample& sample : samples) {
    for (int64_t s = 0; s < options.seq; ++s) {
      int32_t id = random.Below(config.language.vocab_size);
      if (id == image) id = (id + 1) % config.language.vocab_size;
      if (s >= 1 && s <= image_tokens) id = image;
      sample.input_ids.push_back(id);
      sample.labels.push_back(
          s >= options.seq - options.labelled ? id : kIgnoreLabel);
    }
    const int64_t size = config.vision.image_size;
    ModalityItem item{{config.vision.num_channels, size, size}, {}};
    for (int64_t i = 0; i < config.vision.num_channels * size * size; ++i) {
      item.values.push_back(random.Normal());
    }
    sample.modalities[kImages] = {std::move(item)};
  }
  return Collate(samples, 0);
}

double GflopPerStep(const LlavaConfig& config, const Options& options,
                    const std::vector<Parameter*>& parameters) {
  double layers = 0;
  const double text_tokens = options.batch * options.seq;
  const double patches = options.batch * config.vision.patches();
  const double vision_tokens = patches + options.batch;
  for (const Parameter* p : parameters) {
    if (p->frozen || p->data.rank() < 2) continue;
    const double size = p->data.numel();
    const bool vision = p->name.find("encoders") != std::string::npos;
    if (p->name.find("embedding.weight") != std::string::npos) {
      if (p->name.find("patch_") != std::string::npos) {
        layers += 4 * size * patches;  // pixels need no gradient
      }
    } else if (p->name.find("head.weight") != std::string::npos) {
      layers += 6 * size * options.batch * options.labelled;
    } else if (p->name.find("projections") != std::string::npos) {
      layers += 6 * size * options.batch * config.vision.features();
    } else {
      layers += 6 * size * (vision ? vision_tokens : text_tokens);
    }
  }
  if (config.language.tie_word_embeddings) {
    layers += 6.0 * config.language.vocab_size * config.language.hidden_size *
              options.batch * options.labelled;
  }
  const double causal = 6.0 * text_tokens * options.seq *
                        config.language.num_attention_heads *
                        config.language.head_dim() * config.language.num_layers;
  const double full = 12.0 * vision_tokens * (config.vision.patches() + 1) *
                      config.vision.hidden_size * config.vision.layers_used();
  return (layers + causal + full) / 1e9;
}

std::string Describe(const LlavaConfig& config, const Options& options,
                     double seconds) {
  return absl::StrFormat(
      R"({"language": {"num_layers": %d, "hidden_size": %d, )"
      R"("ffn_hidden_size": %d, "num_attention_heads": %d, )"
      R"("num_query_groups": %d, "vocab_size": %d, )"
      R"("max_sequence_length": %d}, "vision": {"num_layers": %d, )"
      R"("hidden_size": %d, "ffn_hidden_size": %d, )"
      R"("num_attention_heads": %d, "image_size": %d, "patch_size": %d, )"
      R"("feature_layer": %d}, "image_token": %d, "batch": %d, "seq": %d, )"
      R"("labelled": %d, "seconds": %g})",
      config.language.num_layers, config.language.hidden_size,
      config.language.ffn_hidden_size, config.language.num_attention_heads,
      config.language.groups(), config.language.vocab_size,
      config.language.max_sequence_length, config.vision.num_layers,
      config.vision.hidden_size, config.vision.ffn_hidden_size,
      config.vision.num_attention_heads, config.vision.image_size,
      config.vision.patch_size, config.vision.feature_layer,
      config.special_token_ids.at(kImages), options.batch, options.seq,
      options.labelled, seconds);
}

absl::Status Run(const std::vector<std::string>& words) {
  Args args("llava_step", "times the training step of a LLaVA config");
  args.Flag("config", "F.yaml", "default configs/flags.yaml");
  args.Flag("batch", "B", "samples of a step (32)");
  args.Flag("seq", "S", "tokens of a sample (40)");
  args.Flag("labelled", "L", "labelled tokens of a sample (8)");
  args.Flag("seconds", "N", "how long to measure (5)");
  args.Flag("describe", "", "print the sizes as JSON and do nothing else");
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.help()) {
    std::cout << args.Usage();
    return absl::OkStatus();
  }
  Options options;
  MIMO_ASSIGN_OR_RETURN(options.batch, args.Int("batch", 32));
  MIMO_ASSIGN_OR_RETURN(options.seq, args.Int("seq", 40));
  MIMO_ASSIGN_OR_RETURN(options.labelled, args.Int("labelled", 8));
  MIMO_ASSIGN_OR_RETURN(const double seconds, args.Double("seconds", 5));
  MIMO_ASSIGN_OR_RETURN(const ConfigNode root,
                        LoadYaml(args.String("config", "configs/flags.yaml")));
  const ModuleRegistry registry = BuiltinModules();
  MIMO_ASSIGN_OR_RETURN(const ModelSection section,
                        ReadModelSection(root["model"], registry));
  if (!section.llava) {
    return absl::InvalidArgumentError("model.type: not llava, wanted llava");
  }
  const LlavaConfig& config = *section.llava;
  if (options.seq < 1 + config.vision.features() + options.labelled) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "--seq: %d, wanted at least %d (an image and the labelled tokens)",
        options.seq, 1 + config.vision.features() + options.labelled));
  }
  if (args.Has("describe")) {
    std::cout << Describe(config, options, seconds) << "\n";
    return absl::OkStatus();
  }

  Allocator allocator;
  MIMO_ASSIGN_OR_RETURN(const auto model,
                        MimoModel::Build(section.model, registry,
                                         {.allocator = &allocator, .seed = 1}));
  MimoStage stage(*model, allocator);
  AdamW optimizer(OptimizerConfig{}, model->Parameters(), allocator);
  const MicroBatch batch = RandomBatch(config, options);
  const double scale = 1.0 / batch.LabelledTokens();
  allocator.ResetPeak();
  const double step = Median(seconds, [&] {
    CHECK_OK(stage.ForwardBackward(batch, scale).status());
    optimizer.Step(1e-3);
    for (Parameter* p : model->Parameters()) p->ForgetGrad();
  });
  const double peak = SgemmPeakGflops();
  const double gflop = GflopPerStep(config, options, model->Parameters());
  const double tokens = options.batch * options.seq / step;
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  std::cout << absl::StrFormat(
      R"({"what": "mimo", "threads": %d, "ms": %.3f, )"
      R"("tokens_per_second": %.0f, "gflop": %.4f, "gflop_per_second": %.1f, )"
      R"("sgemm_peak": %.1f, "share_of_peak": %.3f, "tensors_peak_mib": %.1f, )"
      R"("peak_mib": %.1f})"
      "\n",
      NumThreads(), 1e3 * step, tokens, gflop, gflop / step, peak,
      gflop / step / peak, allocator.stats().peak_bytes / 1048576.0,
      usage.ru_maxrss / 1024.0);
  return absl::OkStatus();
}

}  // namespace
}  // namespace mimo

int main(int argc, char** argv) {
  mimo::EnterUsersFolder();
  const absl::Status status = mimo::Run({argv + 1, argv + argc});
  if (status.ok()) return 0;
  std::cerr << "llava_step: " << status.message() << "\n";
  return 2;
}
