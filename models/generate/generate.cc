#include "models/generate/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/random/philox.h"
#include "mimo/checkpoint/convert.h"

namespace mimo {
namespace {

std::vector<double> Doubles(const Tensor& logits) {
  Allocator host;
  const Tensor here = logits.Clone(host);
  std::vector<double> out(logits.numel());
  CHECK_OK(ConvertElements(here.data(), here.dtype(), out.data(),
                           DType::kFloat64, here.numel()));
  return out;
}

int32_t Pick(const std::vector<double>& logits, const GenerateOptions& options,
             PhiloxSequence& random) {
  if (options.temperature == 0) {
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  size_t keep = order.size();
  if (options.top_k > 0) keep = std::min<size_t>(keep, options.top_k);
  std::vector<double> weight(keep);
  double total = 0;
  for (size_t i = 0; i < keep; ++i) {
    weight[i] =
        std::exp((logits[order[i]] - logits[order[0]]) / options.temperature);
    total += weight[i];
  }
  double mass = 0;
  for (size_t i = 0; i < keep; ++i) {
    mass += weight[i];
    if (mass >= options.top_p * total) keep = i + 1;
  }
  double left = random.Uniform() *
                std::accumulate(weight.begin(), weight.begin() + keep, 0.0);
  for (size_t i = 0; i + 1 < keep; ++i) {
    left -= weight[i];
    if (left < 0) return order[i];
  }
  return order[keep - 1];
}

absl::Status Check(const GenerateOptions& options) {
  for (const auto& [bad, name, value, wanted] :
       {std::tuple(options.max_new_tokens < 0, "max_new_tokens",
                   static_cast<double>(options.max_new_tokens), ">= 0"),
        std::tuple(!(options.temperature >= 0), "temperature",
                   options.temperature, ">= 0"),
        std::tuple(options.top_k < 0, "top_k",
                   static_cast<double>(options.top_k), ">= 0"),
        std::tuple(!(options.top_p > 0 && options.top_p <= 1), "top_p",
                   options.top_p, "in (0, 1]")}) {
    if (bad) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": ", value, ", wanted ", wanted));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> Generate(const Context& ctx,
                                              const MimoModel& model,
                                              std::vector<int32_t> prompt,
                                              const ModalityInputs& inputs,
                                              const GenerateOptions& options) {
  MIMO_RETURN_IF_ERROR(Check(options));
  if (prompt.empty()) {
    return absl::InvalidArgumentError("prompt: no token, wanted at least one");
  }
  Context untaped = ctx;
  untaped.tape = nullptr;
  const LanguageModel& lm = model.language_model();
  const int64_t capacity = std::min<int64_t>(
      prompt.size() + options.max_new_tokens,
      std::max<int64_t>(lm.max_sequence_length(), prompt.size()));
  std::vector<KvCache> caches = lm.MakeCaches(untaped, 1, capacity);
  PhiloxSequence random(options.seed, /*stream=*/0);
  std::vector<int32_t> out;
  std::vector<int32_t> next = std::move(prompt);
  int64_t cached = 0;
  while (static_cast<int64_t>(out.size()) < options.max_new_tokens) {
    const int64_t seq = next.size();
    if (!out.empty() && cached + seq > lm.max_sequence_length()) break;
    MIMO_ASSIGN_OR_RETURN(
        const ModelInputs prepared,
        model.Prepare(untaped, next, 1, seq,
                      cached == 0 ? inputs : ModalityInputs(), cached));
    MIMO_ASSIGN_OR_RETURN(const Var hidden,
                          model.Forward(untaped, prepared, &caches));
    cached += seq;
    const Tensor logits =
        lm.Logits(untaped, hidden.value.Rows(seq - 1, seq));  // [1, V]
    const int32_t token = Pick(Doubles(logits), options, random);
    if (options.eos_id && token == *options.eos_id) break;
    out.push_back(token);
    next = {token};
  }
  return out;
}

}  // namespace mimo
