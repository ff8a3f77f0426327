// The whole training step of a LLaVA config on random data: one JSON line, of
// the numbers that docs/metrics.md defines.
//
//   llava_step [--config F.yaml] [--device D] [--batch B] [--seq S]
//              [--labelled L] [--seconds N] [--phases] [--describe] [a.b=c ...]
//
// One step = forward and backward of B samples of S tokens (one image each, the
// last L tokens labelled) in micro-batches of train.micro_batch_size, the
// global norm, clipping and AdamW. B is the config's global batch; S and L are
// a mock data set's (as long as the model takes, labels on all that follows the
// image), else what the default job gives a step on average. Weights are drawn
// on the device. a.b=c override the config's values.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/log/check.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "bench/step_flops.h"
#include "cli/args.h"
#include "cli/build_model.h"
#include "cli/compute.h"
#include "cli/config.h"
#include "cli/working_directory.h"
#include "kernels/base/device.h"
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

// Median seconds of `run`, which waits for its work, over about `seconds`; five
// runs at least.
double Median(double seconds, absl::FunctionRef<void()> run) {
  for (int i = 0; i < 2; ++i) run();
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

// FLOP a second of a large product: 8192^3 in bfloat16 or 1536^3 in float32.
double GemmRate(Allocator& allocator) {
  const Stream stream = allocator.stream();
  const bool cuda = stream.device == Device::kCuda;
  const int64_t size = cuda ? 8192 : 1536;
  const DType dtype = cuda ? DType::kBFloat16 : DType::kFloat32;
  const Tensor a(allocator, {size, size}, dtype);
  const Tensor b(allocator, {size, size}, dtype);
  const Tensor c(allocator, {size, size}, dtype);
  for (const auto& [x, id] : {std::pair(a, 1), std::pair(b, 2)}) {
    kernels::FillNormal({.out = x.data(),
                         .size = size * size,
                         .seed = 1,
                         .stream = static_cast<uint64_t>(id),
                         .dtype = dtype},
                        0, 1, stream);
  }
  constexpr int kTimes = 5;
  const double seconds = Median(0.2, [&] {
    for (int i = 0; i < kTimes; ++i) {
      kernels::Gemm({.a = a.data(),
                     .b = b.data(),
                     .c = c.data(),
                     .m = size,
                     .n = size,
                     .k = size,
                     .transpose_b = true,
                     .dtype = dtype},
                    stream);
    }
    Synchronize(stream);
  });
  return kTimes * 2.0 * size * size * size / seconds;
}

std::vector<MicroBatch> RandomBatches(const LlavaConfig& config,
                                      const StepSize& size, int64_t micro) {
  const int64_t image_tokens = config.vision.features();
  const int32_t image = config.special_token_ids.at(kImages);
  PhiloxSequence random(7, 0);
  std::vector<MicroBatch> batches;
  for (int64_t done = 0; done < size.batch; done += micro) {
    std::vector<Sample> samples(micro);
    for (Sample& sample : samples) {
      for (int64_t s = 0; s < size.seq; ++s) {
        int32_t id = random.Below(config.language.vocab_size);
        if (id == image) id = (id + 1) % config.language.vocab_size;
        if (s >= 1 && s <= image_tokens) id = image;
        sample.input_ids.push_back(id);
        sample.labels.push_back(s >= size.seq - size.labelled ? id
                                                              : kIgnoreLabel);
      }
      const int64_t edge = config.vision.image_size;
      ModalityItem item{{config.vision.num_channels, edge, edge}, {}};
      for (int64_t i = 0; i < config.vision.num_channels * edge * edge; ++i) {
        item.values.push_back(random.Normal());
      }
      sample.modalities[kImages] = {std::move(item)};
    }
    batches.push_back(Collate(samples, 0));
  }
  return batches;
}

// What PyTorch's side needs to make the same step (bench/baselines).
std::string Describe(const std::string& name, const LlavaConfig& config,
                     const StepSize& size, double seconds) {
  const auto frozen = config.freeze_modality_encoders.find(kImages);
  return absl::StrFormat(
      R"({"config": "%s", "language": {"num_layers": %d, "hidden_size": %d, )"
      R"("ffn_hidden_size": %d, "num_attention_heads": %d, )"
      R"("num_query_groups": %d, "vocab_size": %d, )"
      R"("max_sequence_length": %d}, "vision": {"num_layers": %d, )"
      R"("hidden_size": %d, "ffn_hidden_size": %d, )"
      R"("num_attention_heads": %d, "image_size": %d, "patch_size": %d, )"
      R"("feature_layer": %d}, "freeze_language_model": %v, )"
      R"("freeze_vision": %v, "image_token": %d, "batch": %d, "seq": %d, )"
      R"("labelled": %d, "seconds": %g})",
      name, config.language.num_layers, config.language.hidden_size,
      config.language.ffn_hidden_size, config.language.num_attention_heads,
      config.language.groups(), config.language.vocab_size,
      config.language.max_sequence_length, config.vision.num_layers,
      config.vision.hidden_size, config.vision.ffn_hidden_size,
      config.vision.num_attention_heads, config.vision.image_size,
      config.vision.patch_size, config.vision.feature_layer,
      config.freeze_language_model,
      frozen != config.freeze_modality_encoders.end() && frozen->second,
      config.special_token_ids.at(kImages), size.batch, size.seq, size.labelled,
      seconds);
}

// A step in pieces, each waited for: `"name": milliseconds, ...`. The language
// model's forward is the whole one less the encoders', which run once more.
std::string Phases(MimoModel& model, Allocator& allocator, AdamW& optimizer,
                   const std::vector<MicroBatch>& batches, double scale) {
  std::vector<std::pair<std::string, double>> phases = {
      {"upload", 0}, {"encode", 0},   {"language", 0},
      {"head", 0},   {"backward", 0}, {"update", 0}};
  Clock::time_point begin;
  const auto done = [&](int phase) {
    Synchronize(allocator.stream());
    const Clock::time_point now = Clock::now();
    phases[phase].second += 1e3 * Seconds(now - std::exchange(begin, now));
  };
  for (const MicroBatch& batch : batches) {
    Tape tape;
    Context ctx{.allocator = &allocator};
    Synchronize(allocator.stream());
    begin = Clock::now();
    const auto inputs = model.Prepare(ctx, batch);
    CHECK_OK(inputs);
    done(0);
    CHECK_OK(model.ForwardModalities(ctx, *inputs));
    const double before = phases[1].second;
    done(1);
    phases[2].second -= phases[1].second - before;
    ctx.tape = &tape;
    const auto hidden = model.Forward(ctx, *inputs);
    CHECK_OK(hidden);
    done(2);
    const Var loss =
        model.language_model().Loss(ctx, *hidden, inputs->targets, {});
    done(3);
    std::vector<Tape::Seed> seeds(1);
    seeds[0].grad = Tensor::From<double>(allocator, {1}, {scale});
    seeds[0].slot = loss.slot;
    tape.Backward(ctx, std::move(seeds));
    done(4);
  }
  optimizer.Step(1e-5);
  done(5);
  for (Parameter* p : model.Parameters()) p->ForgetGrad();
  return absl::StrJoin(phases, ", ", [](std::string* out, const auto& phase) {
    absl::StrAppendFormat(out, R"("%s": %.2f)", phase.first, phase.second);
  });
}

absl::Status Run(const std::vector<std::string>& words,
                 Clock::time_point start) {
  Args args("llava_step", "times the training step of a LLaVA config");
  args.Flag("config", "F.yaml", "(configs/flags.yaml)");
  args.Flag("device", "cpu|cuda|auto", "(train.device of the config)");
  args.Flag("batch", "B", "samples of a step (train.global_batch_size)");
  args.Flag("seq", "S", "tokens of a sample (40; as the model with mock data)");
  args.Flag("labelled", "L",
            "labelled tokens of a sample (8; all after the image with mock)");
  args.Flag("seconds", "N", "how long to measure (5)");
  args.Flag("phases", "", "print the milliseconds of a step's phases too");
  args.Flag("describe", "", "print the sizes as JSON and do nothing else");
  args.Positional("a.b=c", "values that win over the config's");
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.PrintsHelp()) return absl::OkStatus();
  const std::string path = args.String("config", "configs/flags.yaml");
  MIMO_ASSIGN_OR_RETURN(const ConfigNode root,
                        ReadRunConfig(path, args.positional()));
  MIMO_ASSIGN_OR_RETURN(const RunSections run, ReadSections(root));
  const ModuleRegistry registry = BuiltinModules();
  MIMO_ASSIGN_OR_RETURN(const ModelSection section,
                        ReadModelSection(root["model"], registry));
  if (!section.llava) {
    return absl::InvalidArgumentError("model.type: not llava, wanted llava");
  }
  const LlavaConfig& config = *section.llava;
  const int64_t longest = config.language.max_sequence_length;
  const int64_t image = 1 + config.vision.features();
  const bool mock = run.data.type == DataType::kMock;
  StepSize size;
  MIMO_ASSIGN_OR_RETURN(size.batch,
                        args.Int("batch", run.train.global_batch_size));
  MIMO_ASSIGN_OR_RETURN(size.seq, args.Int("seq", mock ? longest : 40));
  MIMO_ASSIGN_OR_RETURN(size.labelled,
                        args.Int("labelled", mock ? size.seq - image : 8));
  MIMO_ASSIGN_OR_RETURN(const double seconds, args.Double("seconds", 5));
  if (size.labelled < 1 || size.seq < image + size.labelled) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--seq: %d, wanted at least %d (an image and the "
                        "labelled tokens)",
                        size.seq, image + std::max<int64_t>(size.labelled, 1)));
  }
  const int64_t micro = std::min(run.train.micro_batch_size, size.batch);
  if (size.batch < 1 || size.batch % micro != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "--batch: %d, wanted a multiple of train.micro_batch_size, %d",
        size.batch, micro));
  }
  std::string name = path.substr(path.rfind('/') + 1);
  name = name.substr(0, name.find('.'));
  if (args.Has("describe")) {
    std::cout << Describe(name, config, size, seconds) << "\n";
    return absl::OkStatus();
  }

  MIMO_ASSIGN_OR_RETURN(
      const Compute compute,
      ChooseCompute("train.", args.String("device", run.train.device),
                    run.train.dtype));
  if (run.train.gemm_plans) {
    kernels::AutotuneGemm(*run.train.gemm_plans, compute.stream.device);
  }
  const MemoryInfo others = DeviceMemory(compute.stream.device);
  Allocator allocator(compute.stream);
  MIMO_ASSIGN_OR_RETURN(
      const auto model,
      BuildModel(section.model, registry,
                 {.allocator = &allocator, .dtype = compute.dtype, .seed = 1},
                 run.optimizer));
  MimoStage stage(
      *model, allocator,
      {.capture = run.train.cuda_graph, .pack = run.train.pack_sequences},
      ModelLinks(*model, run.train.encoder_run_ahead));
  AdamW optimizer(run.optimizer, model->Parameters(), allocator);
  const std::vector<MicroBatch> batches = RandomBatches(config, size, micro);
  int64_t labelled = 0;
  for (const MicroBatch& batch : batches) labelled += batch.LabelledTokens();
  const double scale = 1.0 / labelled;
  const Tensor dloss = Tensor::From<double>(allocator, {1}, {scale});
  const auto step = [&] {
    CHECK_OK(stage.ForwardBackward(batches, dloss, {.next = [&](int i) {
                                     return &batches[i % batches.size()];
                                   }}));
    optimizer.Step(1e-5);
    for (Parameter* p : model->Parameters()) p->ForgetGrad();
    Synchronize(compute.stream);
  };
  step();
  const double first = Seconds(Clock::now() - start);
  allocator.ResetPeak();
  const double median = Median(seconds, step);
  const AllocatorStats tensors = allocator.stats();
  const bool cuda = compute.stream.device == Device::kCuda;
  const MemoryInfo memory = DeviceMemory(compute.stream.device);
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const int64_t peak = cuda ? others.free_bytes - memory.free_bytes
                            : int64_t{1024} * usage.ru_maxrss;
  std::string phases;
  // Twice: the first one makes its memory, which captured steps do not use.
  for (int i = 0; i < 2 && args.Has("phases"); ++i)
    phases = Phases(*model, allocator, optimizer, batches, scale);
  const double gemm = GemmRate(allocator);
  const double rate = StepFlops(config, size) / median;
  const std::string device = DeviceName(compute.stream.device);
  const bool hopper =
      absl::StrContains(device, "H100") || absl::StrContains(device, "H200");
  constexpr double kHopperPeak = 989.4e12;  // dense bf16, SXM's datasheet
  constexpr double kGiB = 1 << 30;
  std::cout << absl::StrFormat(
      R"({"what": "mimo", "config": "%s", "device": "%s", "dtype": "%s", )"
      R"("threads": %d, "batch": %d, "micro_batch": %d, "seq": %d, )"
      R"("ms": %.3f, "tokens_per_second": %.0f, "tflop": %.6g, )"
      R"("mfu": %.3f, "gemm_tflops": %.4g, "share_of_gemm": %.3f, )"
      R"("peak_gib": %.3f, "tensors_gib": %.3f, "reserved_gib": %.3f, )"
      R"("first_step_s": %.1f%s})"
      "\n",
      name, device, Name(compute.dtype), NumThreads(), size.batch, micro,
      size.seq, 1e3 * median, size.batch * size.seq / median,
      rate * median * 1e-12, rate / (hopper ? kHopperPeak : gemm), gemm * 1e-12,
      rate / gemm, peak / kGiB, tensors.peak_bytes / kGiB,
      tensors.reserved_bytes / kGiB, first,
      phases.empty() ? "" : absl::StrCat(R"(, "phases": {)", phases, "}"));
  return absl::OkStatus();
}

}  // namespace
}  // namespace mimo

int main(int argc, char** argv) {
  const auto start = std::chrono::steady_clock::now();
  mimo::EnterUsersFolder();
  const absl::Status status = mimo::Run({argv + 1, argv + argc}, start);
  if (status.ok()) return 0;
  std::cerr << "llava_step: " << status.message() << "\n";
  return 2;
}
